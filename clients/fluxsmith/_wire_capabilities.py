"""What both services hold and accept: from messages on the wire to this library's own type."""

from fluxsmith.capabilities import Capabilities
from fluxsmith.v1.encoder_pb2 import EncoderServiceGetCapabilitiesResponse
from fluxsmith.v1.trainer_pb2 import TrainerServiceGetCapabilitiesResponse


def read_capabilities(
    encoder: EncoderServiceGetCapabilitiesResponse, trainer: TrainerServiceGetCapabilitiesResponse
) -> Capabilities:
    """Translate what both told."""
    return Capabilities(
        base_model=trainer.base_model,
        device_type=trainer.device_type,
        worker_count=trainer.worker_count,
        t5_precision=encoder.t5_precision,
        t5_tokens=encoder.t5_tokens,
        default_resolution_px=encoder.default_resolution_px,
        image_formats=tuple(encoder.image_formats),
        max_image_bytes=encoder.max_image_bytes,
        max_image_pixels=encoder.max_image_pixels,
        max_caption_bytes=encoder.max_caption_bytes,
        max_samples=encoder.max_samples,
    )
