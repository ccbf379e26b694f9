"""Run a training script of diffusers as it stands, also where torchvision lacks its compiled part.

    python -m benchmarks.diffusers_launch SCRIPT [ARGUMENT ...]

torchvision's wheels are compiled for a CUDA build of torch. Beside a CPU build its compiled part does not load, and
then its import fails where it describes two detection operators that do not exist. The script needs nothing but picture
transforms, which are Python: so the two are declared, and any call of them would still fail.
"""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def declare_missing_operators() -> torch.library.Library | None:
    """Declare torchvision's operators unless its compiled part does; they last as long as what is returned."""
    found = find_spec("torchvision")
    if found is None or found.origin is None:
        return None
    try:
        torch.ops.load_library(Path(found.origin).with_name("_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for schema in OPERATORS:
            library.define(schema)
        return library
    return None


def main() -> None:
    """Run the script that the first argument names with the others."""
    sys.argv = sys.argv[1:]
    declared = declare_missing_operators()
    runpy.run_path(sys.argv[0], run_name="__main__")
    del declared


if __name__ == "__main__":
    main()
