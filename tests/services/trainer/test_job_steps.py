"""The steps of a whole job: which are skipped, what they recompute, and with how many batches the last one ends."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from diffusers import FluxTransformer2DModel

from services.common import cache
from services.common.cache import CachedObject, DatasetManifest
from services.trainer.jobs import JobState
from tests.services.trainer import test_run_job
from tests.services.trainer.conftest import MakeDataset
from tests.services.trainer.test_run_job import CONFIG, Bench

bench, refusing_server = test_run_job.bench, test_run_job.refusing_server  # fixtures are found by these names


def test_step_that_is_not_finite_is_skipped_and_counted(bench: Bench, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([(64, 64)] * 3)
    broken = {cache.LATENT_MEAN: torch.full((16, 8, 8), float("nan"))}
    stored = bench.objects.put(f"{bench.tenant}/broken", safetensors.torch.save(broken))
    old = manifest.samples[1].views[0].variants[0].latents.model_dump_json()
    new = CachedObject(**vars(stored)).model_dump_json()
    bench.publish(DatasetManifest.model_validate_json(manifest.model_dump_json().replace(old, new)))
    job = bench.run(CONFIG.model_copy(update={"steps": 3, "batch_size": 1}), held_out=False)  # one epoch
    assert job.state is JobState.SUCCEEDED
    assert job.result
    assert job.result.skipped_steps == 1


@pytest.mark.parametrize(("recompute", "forwards_a_step"), [(True, 2), (False, 1)])
def test_activations_are_recomputed_when_the_job_says_so(
    bench: Bench, transformer: FluxTransformer2DModel, recompute: bool, forwards_a_step: int
) -> None:
    forwards: list[None] = []
    handle = transformer.transformer_blocks[0].register_forward_pre_hook(lambda *_: forwards.append(None))
    bench.run(CONFIG.model_copy(update={"steps": 2, "gradient_checkpointing": recompute}), held_out=False)
    handle.remove()
    assert len(forwards) == 2 * forwards_a_step


@pytest.mark.parametrize(("length", "batches"), [({"epochs": 1}, 3), ({"epochs": 3}, 9), ({"steps": 2}, 4)])
def test_last_step_of_epochs_ends_with_them(
    bench: Bench, transformer: FluxTransformer2DModel, length: dict[str, int], batches: int
) -> None:
    seen: list[None] = []
    handle = transformer.register_forward_pre_hook(lambda *_: seen.append(None))
    config = CONFIG.model_copy(update={"steps": None, "batch_size": 1, "gradient_accumulation_steps": 2, **length})
    job = bench.run(config, held_out=False)
    handle.remove()
    assert len(seen) == batches  # three samples, two a step
    assert job.step == -(-batches // 2)
