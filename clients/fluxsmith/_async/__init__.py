"""The client as it is written: for asyncio. `scripts/make_sync.py` makes its twin for callers without an event loop.

`fluxsmith/X.py` is made of `fluxsmith/_async/X.py`; only `_runtime.py` is written by hand on both sides.
"""
