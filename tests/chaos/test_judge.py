"""The judge of chaos sees what must not be: every charge can be brought."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest

from services.common.object_store import ObjectStore
from tests.chaos.judge import bit_faults, event_faults, file_faults, reference_of, resume_faults
from tests.chaos.ledger import Happening, Row
from tests.services.damage import damage

LORA = b"what was learnt"


def artifact(store: ObjectStore, key: str, data: bytes) -> dict[str, Any]:
    store.put(key, data)
    digest = hashlib.sha256(data).hexdigest()
    return {"artifact_name": key.rpartition("/")[2], "uri": store.uri(key), "content_digest": digest}


def steps(*numbers: int) -> dict[str, Any]:
    measured = [{"step": number, "loss": 1 / number, "gradient_norm": 0.5, "learning_rate": 0.1} for number in numbers]
    return {"kind": "steps_completed", "steps": measured}


def claim(attempt: int) -> dict[str, Any]:
    return {"kind": "state_changed", "state": "RUNNING", "message": f"attempt {attempt}"}


def checkpoint(step: int, epoch: int = 1) -> dict[str, Any]:
    return {"kind": "checkpoint_written", "checkpoint": {"checkpoint_id": f"{step:06}-{epoch}", "step": step}}


def skipped(step: int, epoch: int = 1) -> dict[str, Any]:
    message = f"checkpoint {step:06}-{epoch}: state.json is not what was written"
    return {"kind": "warning", "reason": "CHECKPOINT_SKIPPED", "message": message}


END = {"kind": "state_changed", "state": "SUCCEEDED"}
STRUCK = [claim(1), steps(1, 2, 3), claim(2), steps(3, 4), END]


def told(*facts: dict[str, Any]) -> list[Happening]:
    return [Happening(sequence=number, facts=fact) for number, fact in enumerate(facts, start=1)]


def row(happenings: list[Happening], result: dict[str, Any] | None = None) -> Row:
    return Row(
        job_id="job-1",
        name="it",
        state="SUCCEEDED",
        owner="",
        epoch=2,
        attempt=2,
        step=4,
        last_sequence=happenings[-1].sequence,
        result=result,
        failure=None,
    )


def test_a_job_that_went_on_from_a_checkpoint_has_no_fault() -> None:
    assert not list(event_faults(row(told(*STRUCK)), told(*STRUCK)))


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param([claim(1), steps(1, 2), claim(2), steps(4), END], id="a hole between attempts"),
        pytest.param(
            [claim(1), steps(1, 2), claim(2), steps(2), steps(3), steps(3, 4), END], id="an old attempt's step"
        ),
        pytest.param([claim(1), steps(1, 2), END], id="a step that was not told of"),
        pytest.param([*STRUCK, END], id="two ends"),
        pytest.param([*STRUCK, claim(3)], id="something after the end"),
    ],
)
def test_events_out_of_order_are_seen(facts: list[dict[str, Any]]) -> None:
    assert list(event_faults(row(told(*facts)), told(*facts)))


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param([claim(1), steps(1, 2), checkpoint(2), steps(3), claim(2), steps(3)], id="from the newest"),
        pytest.param([claim(1), steps(1, 2), claim(2), steps(1)], id="anew, before any checkpoint"),
        pytest.param(
            [claim(1), steps(1, 2), checkpoint(1), checkpoint(2), claim(2), skipped(2), claim(3), skipped(2), steps(2)],
            id="from the one before a damaged one, told of twice",
        ),
    ],
)
def test_a_resume_is_one_from_the_newest_checkpoint_that_can_be_read(facts: list[dict[str, Any]]) -> None:
    assert not list(resume_faults(told(*facts)))


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param([claim(1), steps(1, 2), checkpoint(2), claim(2), steps(1)], id="always anew"),
        pytest.param([claim(1), steps(1, 2), checkpoint(1), checkpoint(2), claim(2), steps(2)], id="an older one"),
        pytest.param([claim(1), steps(1, 2), checkpoint(2), claim(2), skipped(2), steps(3)], id="a damaged one"),
        pytest.param(
            [claim(1), steps(1, 2), checkpoint(1), checkpoint(2), claim(2), skipped(2), steps(1)], id="not far enough"
        ),
        pytest.param([claim(1), steps(2)], id="from nothing"),
    ],
)
def test_an_attempt_that_is_no_resume_is_seen(facts: list[dict[str, Any]]) -> None:
    assert list(resume_faults(told(*facts)))


def test_a_gap_in_the_sequence_is_seen() -> None:
    happenings = told(STRUCK[0], {"kind": "warning", "reason": "SHORT_RUN"}, *STRUCK[1:])
    assert not list(event_faults(row(happenings), happenings))
    assert list(event_faults(row(happenings), [happenings[0], *happenings[2:]]))


def published(store: ObjectStore) -> tuple[Row, list[Happening]]:
    lora = artifact(store, "t/jobs/job-1/2/lora.safetensors", LORA)
    metrics = artifact(store, "t/jobs/job-1/2/metrics.csv", b"loss")
    facts = [{"kind": "artifact_published", "artifact": each} for each in (metrics, lora)]
    happenings = told(*STRUCK[:-1], *facts, END)
    return row(happenings, {"lora": lora, "artifacts": [metrics]}), happenings


def test_whole_files_have_no_fault_and_a_torn_one_is_seen(store: ObjectStore) -> None:
    job, happenings = published(store)
    assert not list(file_faults(job, happenings, [], store))
    damage(store, "t/jobs/job-1/2/metrics.csv")
    assert list(file_faults(job, happenings, [], store))


def test_a_file_that_is_gone_is_seen(store: ObjectStore) -> None:
    job, happenings = published(store)
    store.delete("t/jobs/job-1/2/lora.safetensors")
    assert list(file_faults(job, happenings, [], store))


def test_a_second_lora_is_seen(store: ObjectStore) -> None:
    job, happenings = published(store)
    other = artifact(store, "t/jobs/job-1/1/lora.safetensors", LORA)
    twice = told({"kind": "artifact_published", "artifact": other}, *(each.facts for each in happenings))
    assert list(file_faults(job, twice, [], store))


def test_a_checkpoint_with_a_torn_part_is_seen(store: ObjectStore) -> None:
    job, happenings = published(store)
    folder = "t/jobs/job-1/checkpoints/000002-1"
    part = artifact(store, f"{folder}/adapter.safetensors", b"adapter")
    stored = {"adapter": {"key": f"{folder}/adapter.safetensors", "digest": part["content_digest"], "size_bytes": 7}}
    manifest = artifact(store, f"{folder}/manifest.json", json.dumps({"parts": stored}).encode())
    checkpoint = {"uri": manifest["uri"], "manifest_digest": manifest["content_digest"]}
    assert not list(file_faults(job, happenings, [checkpoint], store))
    damage(store, f"{folder}/adapter.safetensors")
    assert list(file_faults(job, happenings, [checkpoint], store))


def test_other_bits_are_seen_in_the_file_and_in_any_step(store: ObjectStore) -> None:
    job, happenings = published(store)
    reference = reference_of(job, happenings, store)
    assert not list(bit_faults(job, happenings, reference, store))
    assert list(bit_faults(job, happenings, dataclasses.replace(reference, lora_digest="0" * 64), store))
    assert list(bit_faults(job, happenings, dataclasses.replace(reference, losses={8: 0.1}), store))
    best = {**reference.adapters, "lora-best.safetensors": "0" * 64}
    assert list(bit_faults(job, happenings, dataclasses.replace(reference, adapters=best), store))
    nearly = {**reference.steps, 3: (reference.steps[3][0] + 1e-16, 0.5, 0.1)}
    assert list(bit_faults(job, happenings, dataclasses.replace(reference, steps=nearly), store))
