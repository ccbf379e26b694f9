"""The demo behind `make demo`: a LoRA trained end to end on flux-tiny, and pictures that show what it learned."""

import logging
import time

STARTED_S = time.monotonic()  # on the monotonic clock, before the libraries are loaded, for which a person waits too

# It says at import that a package which fetches code from a hub is missing: nothing for the demo's reader.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
