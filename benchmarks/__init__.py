"""Measurements of the services' own code. `gpu.py` is the one for a CUDA GPU; README.md says what its figures mean."""
