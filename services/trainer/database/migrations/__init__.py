"""How the job database came to be what `tables.py` says: one file a change, applied in order when it is opened."""
