"""How much memory a job would need, told before it is queued."""
