"""What the trainer answers to EstimateMemory: for its own base and for FLUX.1-dev, checked as a job is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fluxsmith.v1 import trainer_pb2 as pb

from services.common.errors import InvalidInput, NotReady
from services.common.settings import ServiceSettings
from services.trainer.estimate import gpu
from services.trainer.estimate.estimator import Estimate, MemoryEstimator
from services.trainer.estimate.measured import DATE, DEVICE, MEASURED, Measured
from services.trainer.wire import estimate_message
from tests.policy.sources import ROOT


@pytest.fixture
def estimator(service_settings: ServiceSettings) -> MemoryEstimator:
    return MemoryEstimator(service_settings)


def for_dev(estimator: MemoryEstimator, *, side_px: int = 0, **fields: Any) -> Estimate:
    return estimator.estimate(fields, side_px=side_px, for_dev=True)


def test_default_job_on_flux_1_dev_fits_32_gb(estimator: MemoryEstimator) -> None:
    estimate = for_dev(estimator)
    assert 26e9 < estimate.peak_bytes < estimate.recommended_bytes < 32e9
    assert estimate.parts[0].name == "weights"


def test_peak_is_the_sum_of_its_parts(estimator: MemoryEstimator) -> None:
    estimate = for_dev(estimator, ema_decay=0.99, batch_size=3)
    assert sum(part.size_bytes for part in estimate.parts) == estimate.peak_bytes
    assert [part.size_bytes for part in estimate.parts] == sorted((p.size_bytes for p in estimate.parts), reverse=True)
    assert {part.name for part in estimate.parts} == {
        "weights", "adapter", "gradients", "optimizer", "average", "activations", "workspace"
    }  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {"rank": 128},
        {"batch_size": 2},
        {"side_px": 1280},
        {"gradient_checkpointing": False},
        {"ema_decay": 0.9},
        {"targets": "ALL_LINEAR"},
        {"optimizer": "PRODIGY"},
    ],
)
def test_more_needs_more(estimator: MemoryEstimator, more: dict[str, Any]) -> None:
    assert for_dev(estimator, **more).peak_bytes > for_dev(estimator).peak_bytes


def test_savings_are_what_the_changed_configuration_saves(estimator: MemoryEstimator) -> None:
    here = for_dev(estimator, batch_size=4, gradient_checkpointing=False)
    savings = {saving.change: saving.saved_bytes for saving in here.savings}
    changed = for_dev(estimator, batch_size=4)
    assert savings["set gradient_checkpointing"] == here.peak_bytes - changed.peak_bytes
    assert next(iter(savings)) == "set gradient_checkpointing"
    assert list(savings.values()) == sorted(savings.values(), reverse=True)


def test_own_base_is_counted_as_it_is_held(estimator: MemoryEstimator, base_model: Path) -> None:
    weights = next(part for part in estimator.estimate({}, side_px=64).parts if part.name == "weights")
    on_disk = sum(path.stat().st_size for path in (base_model / "transformer").glob("*.safetensors"))
    assert weights.size_bytes == pytest.approx(2 * on_disk, rel=0.01)  # bf16 in the file, float32 on a CPU


def test_all_that_is_wrong_is_told_at_once(estimator: MemoryEstimator) -> None:
    with pytest.raises(InvalidInput) as raised:
        estimator.estimate({"rank": 0, "target_regex": "nothing"}, side_px=100)
    assert {violation.field for violation in raised.value.violations} == {
        "config.rank", "config.target_regex", "resolution_px"
    }  # fmt: skip


def test_unreadable_base_is_told_with_what_to_do() -> None:
    estimator = MemoryEstimator(ServiceSettings(base_model="/nowhere", device="cpu"))
    with pytest.raises(NotReady, match="base model 'nowhere'") as told:
        estimator.estimate({})
    assert "'/nowhere'" in told.value.log_line
    assert told.value.reason == "BASE_MODEL_UNKNOWN"
    assert for_dev(estimator).peak_bytes > 26e9


def test_like_measurements_come_first(estimator: MemoryEstimator) -> None:
    first, second, *_ = for_dev(estimator, gradient_checkpointing=False, side_px=768).measured
    assert {first.side_px, second.side_px} == {512, 1024}
    assert first.changed == second.changed == {"gradient_checkpointing": False}
    assert for_dev(estimator, adapter_type="DORA").measured[0].configuration.endswith("adapter_type DORA")


def test_measurements_are_those_that_are_committed() -> None:
    [path] = (ROOT / "benchmarks" / "results").glob("memory-*-full-*.json")
    report = json.loads(path.read_text())
    assert (report["device"], report["date"][:10]) == (DEVICE, DATE)
    assert [(run.side_px, run.changed, run.allocated_gb, run.reserved_gb) for run in MEASURED] == [
        (
            case["resolution_px"],
            case["changed"],
            *(round(case["peak"][f"{kind}_gb"], 2) for kind in ("allocated", "reserved")),
        )
        for case in report["cases"]
    ]


@pytest.mark.parametrize("run", MEASURED, ids=lambda run: run.configuration)
def test_estimate_is_within_a_tenth_of_what_a_gpu_showed_and_never_below(
    estimator: MemoryEstimator, run: Measured
) -> None:
    estimate = for_dev(estimator, side_px=run.side_px, **run.changed)
    assert 1 <= estimate.peak_bytes / 1e9 / run.allocated_gb < 1.1
    assert estimate.recommended_bytes / 1e9 > run.reserved_gb + 0.4


def test_gpu_without_a_driver_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "COMMAND", ("no-such-command",))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu.gpu_memory_bytes() == 0


def test_gpu_memory_is_read_as_the_driver_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "COMMAND", ("sh", "-c", "echo 24564"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu.gpu_memory_bytes() == 24564 * 2**20


def test_message_has_everything(estimator: MemoryEstimator) -> None:
    estimate = for_dev(estimator)
    message = estimate_message(estimate)
    assert isinstance(message, pb.EstimateMemoryResponse)
    assert [part.bytes for part in message.parts] == [part.size_bytes for part in estimate.parts]
    assert message.savings[0].bytes == estimate.savings[0].saved_bytes
    assert all(part.explanation for part in message.parts)
