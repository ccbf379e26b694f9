"""How much memory the workers' GPU has, asked of its driver: this process itself never touches CUDA."""

from __future__ import annotations

import logging
import subprocess

from services.trainer.supervisor import visible_gpus

log = logging.getLogger(__name__)

COMMAND = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
PATIENCE_S = 20.0
MIB = 2**20


def gpu_memory_bytes() -> int:
    """Memory of the first GPU that workers get, in bytes; 0 where the driver does not tell."""
    visible = visible_gpus()
    if visible == []:
        return 0
    try:
        told = subprocess.run(  # noqa: S603 - a fixed command
            [*COMMAND, f"--id={visible[0] if visible else 0}"],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
        return int(told.stdout.split()[0]) * MIB
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        log.warning("the GPU's memory is not known: %s", error)
        return 0
