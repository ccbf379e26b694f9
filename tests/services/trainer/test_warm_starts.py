"""Jobs that begin with files of other programs: what of a file they use, and whose fault it is when they cannot."""

from __future__ import annotations

import safetensors.torch
import torch
from torch import Tensor

from services.trainer.jobs import Fault, JobState
from tests.services.trainer import test_run_job
from tests.services.trainer.test_run_job import CONFIG, Bench

bench, refusing_server = test_run_job.bench, test_run_job.refusing_server  # fixtures are found by these names

LAYER = "transformer_blocks.0.attn.to_q"
FACTORS = {f"transformer.{LAYER}.lora_A.weight": torch.ones(2, 192)}
FACTORS |= {f"transformer.{LAYER}.lora_B.weight": torch.ones(192, 2)}
CLIP = {f"lora_te1_layer.{side}.weight": torch.ones(2, 2) for side in ("lora_down", "lora_up")}


def put(bench: Bench, tensors: dict[str, Tensor], *, without_metadata: bool = False) -> str:
    """The address of a file with these tensors, where a job would have left it; `null` is its metadata by choice."""
    data: bytes = safetensors.torch.save(tensors, {"format": "pt"})
    if without_metadata:
        size = 8 + int.from_bytes(data[:8], "little")
        header = data[8:size].replace(b'{"format":"pt"}', b"null")
        data = len(header).to_bytes(8, "little") + header + data[size:]
    return bench.objects.uri(bench.objects.put(f"{bench.tenant}/jobs/job-{'0' * 20}/1/lora.safetensors", data).key)


def test_text_encoders_of_a_file_are_left_out_with_a_warning(bench: Bench) -> None:
    uri = put(bench, FACTORS | CLIP)
    job = bench.run(CONFIG.model_copy(update={"warm_start_uri": uri, "target_regex": LAYER}))
    assert job.state is JobState.SUCCEEDED
    assert "2 tensors of CLIP's text encoder" in bench.warnings(job)["WARM_START_LEFT_OUT"]


def test_null_in_place_of_metadata_is_the_users_fault(bench: Bench) -> None:
    job = bench.run(CONFIG.model_copy(update={"warm_start_uri": put(bench, FACTORS, without_metadata=True)}))
    assert job.failure
    assert (job.state, job.failure.fault, job.failure.reason) == (
        JobState.FAILED,
        Fault.USER,
        "WARM_START_UNREADABLE",
    )
