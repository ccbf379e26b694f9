"""The job database: what servers and workers share besides the object store."""
