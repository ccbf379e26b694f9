"""What both services hold and accept."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What encoder and trainer were started with."""

    base_model: str
    """Folder name or hub identifier of the base model, as the trainer has it."""
    device_type: str
    """Type of the device that workers train on: `cuda` or `cpu`."""
    worker_count: int
    """Worker processes of the trainer."""
    t5_precision: str
    """Precision of the encoder's T5 weights: `int8`, `nf4`, `bf16` or `fp32`."""
    t5_tokens: int
    """Tokens that T5's output is padded to."""
    default_resolution_px: int
    """Default of `EncodingOptions.resolution_px`."""
    image_formats: tuple[str, ...]
    """Image formats read, such as `PNG`."""
    max_image_bytes: int
    """Largest image file."""
    max_image_pixels: int
    """Largest image."""
    max_caption_bytes: int
    """Longest caption in bytes of UTF-8."""
    max_samples: int
    """Most samples in one dataset."""
