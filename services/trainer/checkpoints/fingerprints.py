"""What a checkpoint says of where it was written, so that a job goes on only where it goes on as it began."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from services.trainer.config import TrainConfig
from services.trainer.config.choices import Optimizer

BLOCK_BYTES = 65_536
BLOCKS = 64  # of each file: 4 MiB, some milliseconds
PACKAGES = ("fluxsmith", "torch", "peft", "diffusers", "bitsandbytes")
PACKAGE_OF = {
    Optimizer.PRODIGY: "prodigyopt",
    Optimizer.ADAFACTOR: "transformers",
    Optimizer.LION: "lion-pytorch",
    Optimizer.ADAMW_SCHEDULE_FREE: "schedulefree",
}


class Fingerprints(BaseModel):
    """What a run is made of besides its configuration.

    `base` is that of the base model, `encoder` that of who encoded the dataset; `datasets` are the digests of the
    manifests of the data and of what is held out, empty where not known yet. `versions` are those of the programs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    encoder: str
    datasets: tuple[str, ...]
    versions: dict[str, str]


def versions(config: TrainConfig) -> dict[str, str]:
    """Versions of what computes: of these packages, and of the one that the job's optimizer is from."""
    names = {*PACKAGES, PACKAGE_OF.get(config.optimizer, "torch")}
    return {name: version(name) for name in sorted(names)}


def base_fingerprint(folder: Path) -> str:
    """Digest of a transformer's folder in diffusers' layout: its config.json and its safetensors files.

    Of each file count name, size, header and 64 KiB at 64 places, the first and the last among them: 24 GB take some
    milliseconds. It tells models, fine-tunings and precisions apart, and files that were cut; not a file in which
    single numbers were changed on purpose.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(json.dumps([path.name, path.stat().st_size]).encode())
        for block in _samples(path):
            digest.update(block)
    return digest.hexdigest()


def _samples(path: Path) -> Iterator[bytes]:
    """The header, then blocks at equal distances up to the end; a small file whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 8 + min(int.from_bytes(file.read(8), "little"), size)
        file.seek(0)
        yield file.read(start)
        rest = size - start
        if rest <= BLOCKS * BLOCK_BYTES:
            yield file.read()
            return
        for number in range(BLOCKS):
            file.seek(start + number * (rest - BLOCK_BYTES) // (BLOCKS - 1))
            yield file.read(BLOCK_BYTES)
