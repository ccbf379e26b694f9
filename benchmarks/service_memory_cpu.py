"""Memory of the encoder's three models in their full sizes on a CPU, for where no GPU is at hand.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.service_memory_cpu

Random weights in FLUX.1-dev's sizes, T5 in 8 bit, everything else in bf16, held and run by the encoder's own class.
What is told is the process's resident memory above what it held before: loaded, and at its peak while one caption of
512 tokens and one image of 1024 x 1024 px are encoded. Needs 17 GB while T5 is quantised; Linux only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import log
from benchmarks.scales import FULL
from benchmarks.service_memory import random_models
from services.encoder.inference import give_back_free_memory
from services.encoder.loading import LoadChoices

GIB = 1024**3
DEVICE = torch.device("cpu")


def main() -> None:
    choices = LoadChoices(device=DEVICE, dtype=torch.bfloat16, t5_precision="int8", vae_tiling=False)
    models = random_models(FULL, choices, one_at_a_time=False)
    before = resident("VmRSS")
    models.load("vae", "text_encoder", "text_encoder_2")
    give_back_free_memory()
    print(f"loaded: {(resident('VmRSS') - before) / GIB:.2f} GiB")
    pixels_CHW = np.random.default_rng(0).uniform(-1, 1, (3, 1024, 1024)).astype(np.float32)
    encodings: dict[str, Callable[[], object]] = {
        "a caption": lambda: models.encode_caption("a caption of a few words"),
        "an image": lambda: models.encode_image(pixels_CHW),
    }
    for what, encode in encodings.items():
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        began_s = time.monotonic()
        encode()
        log.info("%s took %.0f s", what, time.monotonic() - began_s)
        print(f"peak while encoding {what}: {(resident('VmHWM') - before) / GIB:.2f} GiB")


def resident(name: str) -> int:
    """Resident memory of this process in bytes: now (VmRSS) or at its peak (VmHWM)."""
    return 1024 * int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])


if __name__ == "__main__":
    main()
