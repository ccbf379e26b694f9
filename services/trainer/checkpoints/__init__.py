"""Checkpoints: all that a job goes on from, as an atomic set of objects in the store."""
