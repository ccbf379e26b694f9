"""An HTTP gateway for product backends: LoRA training behind a few endpoints, in front of encoder and trainer.

    python -m gateway

Endpoints, settings and errors are in docs/gateway.md.
"""
