"""What both services use: the object store, the cache contract, errors, and the set-up of a server."""
