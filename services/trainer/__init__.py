"""The trainer service: fits LoRA adapters to a resident FLUX.1 transformer. The loop is in `train.py`."""
