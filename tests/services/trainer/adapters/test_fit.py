"""Whether a file fits a job, by its header alone."""

from __future__ import annotations

import pytest

from services.common.errors import InvalidInput
from services.common.safetensors_header import Source, read_header
from services.trainer.adapters.fit import refuse_unlike
from services.trainer.adapters.outline import outline_of
from services.trainer.config import TrainConfig
from tests.services.trainer.adapters.test_file_forms import MODULES, QKV, RANK, file_of
from tests.services.trainer.conftest import draw


@pytest.mark.parametrize("rank", [RANK - 1, RANK, RANK + 1])
def test_rank_over_that_of_a_fused_layer_is_refused_by_the_header_alone(rank: int) -> None:
    tensors = {f"{QKV}.lora_down.weight": draw("a", RANK, 6), f"{QKV}.lora_up.weight": draw("b", 12, RANK)}
    outline = outline_of(read_header(Source.of(file_of(tensors))))
    config = TrainConfig(rank=rank)
    shapes = {f"{name}.lora_A.weight": (rank, 6) for name in MODULES[:3]}
    shapes |= {f"{name}.lora_B.weight": (4, rank) for name in MODULES[:3]}
    if rank <= RANK:
        refuse_unlike(outline, config, shapes)
    else:
        with pytest.raises(InvalidInput, match=r"has rank 2, the job's .*attn.to_k.lora_A.weight 3"):
            refuse_unlike(outline, config, shapes)
