"""What the header of a LoRA file says of where it comes from, for people and for the programs that list such files.

Only these fields tell two files of equal adapters apart. Keys are ModelSpec's 1.0.0, kohya's `ss_*`, and our own.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from PIL import Image

from services.common.cache import CachedSample
from services.trainer.base import Base
from services.trainer.config import TrainConfig
from services.trainer.data.job_data import Data
from services.trainer.jobs import Job
from services.trainer.results.history import Preview

# Files travel further than jobs: what changes no weight, or tells of the store, stays out of their headers.
NOT_IN_FILES = {name for name in TrainConfig.model_fields if name.startswith(("preview_", "checkpoint"))} | {
    "warm_start_uri",
    "tag_frequency",
}
UNTITLED = "fluxsmith LoRA"
THUMBNAIL_PX = 256
JPEG_QUALITY = 85
MOST_TAGS_BYTES = 65_536
LONGEST_NAME_BYTES = 200  # 255 is what file systems take, with a suffix
_NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')


def provenance(job: Job, base: Base, data: Data) -> dict[str, str]:
    """What is known when a job begins."""
    config = job.config.model_dump_json(exclude=NOT_IN_FILES)
    head, size = data.training.head, data.usual_size()
    title = job.display_name or UNTITLED
    fields = {
        "modelspec.title": title,
        "modelspec.architecture": f"{base.kind.architecture}/lora",
        # The day, so that jobs of one day that do the same publish the same bytes.
        "modelspec.date": datetime.fromtimestamp(job.start_time_s or job.create_time_s, UTC).date().isoformat(),
        "modelspec.resolution": f"{size.width_px}x{size.height_px}",
        "ss_output_name": as_file_name(title),
        "ss_sd_model_name": base.name.rpartition("/")[2],
        "fluxsmith.version": version("fluxsmith"),
        "fluxsmith.base_model": base.name,
        "fluxsmith.base_kind": base.kind,
        "fluxsmith.config": config,
        "fluxsmith.config_digest": hashlib.sha256(config.encode()).hexdigest(),
        "fluxsmith.encoder_fingerprint": head.encoder_fingerprint,
    }
    if head.trigger_word:
        fields |= {
            "modelspec.trigger_phrase": head.trigger_word,
            "modelspec.usage_hint": f"Put the trigger word into the prompt: {head.trigger_word}",
            "fluxsmith.trigger_word": head.trigger_word,
        }
    return fields


def as_file_name(title: str) -> str:
    """A title as the name of a file without suffix: what a file system or a prompt would take otherwise becomes `_`."""
    name = _NOT_IN_NAMES.sub("_", title).encode()[:LONGEST_NAME_BYTES].decode(errors="ignore").strip(" .")
    return name or UNTITLED


def thumbnail(previews: Sequence[Preview], step: int) -> dict[str, str]:
    """The last of the previews after the first step and up to `step`, as a small JPEG in a data URI; or nothing.

    `previews` are in the order of their steps. A picture of step 0 shows what there was before the training.
    """
    steps = [preview.step for preview in previews if 0 < preview.step <= step]
    if not steps:
        return {}
    shown = next(preview for preview in previews if preview.step == steps[-1])
    with Image.open(io.BytesIO(shown.picture.data)) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=JPEG_QUALITY)
    return {"modelspec.thumbnail": f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"}


def tag_frequency(samples: Iterable[CachedSample]) -> dict[str, str]:
    """How many captions have each of the tags between their commas, as kohya's scripts write it.

    The rarest are left out where all of them would be more than 64 KiB.
    """
    counts = Counter(
        tag
        for sample in samples
        for caption in sample.captions
        for tag in {part.strip().lower() for part in caption.caption.split(",")} - {""}
    )
    kept: dict[str, int] = {}
    left = MOST_TAGS_BYTES
    for tag, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        left -= len(json.dumps({tag: count}))
        if left < 0:
            break
        kept[tag] = count
    return {"ss_tag_frequency": json.dumps({"captions": kept})}
