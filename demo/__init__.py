"""The demo behind `make demo`: a LoRA trained end to end on flux-tiny, and pictures that show what it learned."""
