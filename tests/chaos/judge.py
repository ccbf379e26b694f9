"""What has become of the jobs: is one lost, is a file torn or there twice, are bits and events those of a quiet run."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from services.common.object_store import ObjectMissing, ObjectStore
from tests.chaos.ledger import ENDED, Happening, Ledger, Row
from tests.chaos.stand import Submission

LORA_FILE = "lora.safetensors"
CHECKPOINTS_KEPT = 2  # the default
SKIPPED = re.compile(r"checkpoint (\d+-\d+)\b")


class Charge(StrEnum):
    """What can be wrong with a job."""

    LOST = "lost"
    TORN = "duplicate or torn"
    UNEQUAL = "bits differ"
    EVENTS = "events"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that must not be."""

    job: str
    charge: Charge
    text: str

    def __str__(self) -> str:
        return f"{self.job}: {self.charge}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a kind of job gives when nothing happens to it. Numbers are compared as they are, bit by bit."""

    lora_digest: str
    total_steps: int
    steps: dict[int, tuple[float, float, float]]
    losses: dict[Any, float]
    held_out: tuple[Any, ...]
    adapters: dict[str, str]
    """Digests of all adapter files of the result by their names, the best one's among them."""


def reference_of(row: Row, happenings: Sequence[Happening], store: ObjectStore) -> Reference:
    """The reference that an undisturbed job is; raises `ValueError` when it did not succeed."""
    if row.state != "SUCCEEDED" or row.result is None:
        raise ValueError(f"the reference job ended {row.state}: {row.failure}")
    return Reference(
        lora_digest=_learnt(store, row.result["lora"]),
        total_steps=row.step,
        steps={step["step"]: _measured(step) for happening in happenings for step in _steps(happening)},
        losses={
            happening.facts["step"]: happening.facts["loss"]
            for happening in happenings
            if happening.kind == "validation_completed"
        },
        held_out=_held_out(row.result),
        adapters=_adapters(row.result, store),
    )


def judge(
    submissions: Sequence[Submission],
    ledger: Ledger,
    store: ObjectStore,
    references: dict[str, Reference],
    *,
    expected: dict[str, str] | None = None,
) -> list[Problem]:
    """Judge jobs by their names; `expected` has the end of those that are not to succeed, by their kinds."""
    rows = ledger.jobs()
    by_id = {row.job_id: row for row in rows}
    problems = [
        Problem(job=name, charge=Charge.TORN, text=f"there are {count} jobs of this name")
        for name, count in Counter(row.name for row in rows).items()
        if count > 1 and any(submission.name == name for submission in submissions)
    ]
    for submission in submissions:
        row = by_id.get(submission.job_id)
        state = (expected or {}).get(submission.kind.name, "SUCCEEDED")
        found = _faults(row, state, ledger, store, references.get(submission.kind.name))
        problems += [Problem(job=submission.name, charge=charge, text=text) for charge, text in found]
    return problems


def _faults(
    row: Row | None, state: str, ledger: Ledger, store: ObjectStore, reference: Reference | None
) -> Iterator[tuple[Charge, str]]:
    if row is None or row.state != state:
        yield Charge.LOST, f"is {row.state}: {row.failure}" if row else "is not there"
        return
    happenings = ledger.happenings(row.job_id)
    for text in (*event_faults(row, happenings), *resume_faults(happenings)):
        yield Charge.EVENTS, text
    for text in file_faults(row, happenings, ledger.checkpoints(row.job_id), store):
        yield Charge.TORN, text
    if reference is not None and state == "SUCCEEDED":
        for text in bit_faults(row, happenings, reference, store):
            yield Charge.UNEQUAL, text


def event_faults(row: Row, happenings: Sequence[Happening]) -> Iterator[str]:
    """Gaps, steps out of order, work of an attempt that had been replaced, an end that is not the only one."""
    if [happening.sequence for happening in happenings] != list(range(1, row.last_sequence + 1)):
        yield f"sequences are not 1 to {row.last_sequence}"
    ends = [happening for happening in happenings if happening.facts.get("state") in ENDED]
    if len(ends) != 1 or happenings[-1] is not ends[0]:
        yield f"{len(ends)} events tell of the end, and the last is {happenings[-1].facts}"
    last, furthest = None, 0
    for happening in happenings:
        if happening.claims:
            last = None  # the attempt may go back to a checkpoint, but not beyond what was reached
        for step in _steps(happening):
            number = step["step"]
            if (number > furthest + 1) if last is None else (number != last + 1):
                before = furthest if last is None else last
                yield f"step {number} at sequence {happening.sequence} follows step {before}"
            last, furthest = number, max(furthest, number)
    if row.state == "SUCCEEDED" and furthest != row.step:
        yield f"{furthest} steps were told of, {row.step} are said to be done"


def resume_faults(happenings: Sequence[Happening]) -> Iterator[str]:
    """Attempts that did not go on from the newest checkpoint that was there and could be read."""
    written: dict[str, int] = {}
    skipped, beginning = 0, False
    for happening in happenings:
        if happening.kind == "checkpoint_written":
            checkpoint = happening.facts["checkpoint"]
            written[checkpoint["checkpoint_id"]] = checkpoint["step"]
            skipped = 0
        elif found := SKIPPED.match(_skip_message(happening)):
            skipped += written.pop(found.group(1), None) is not None
        beginning = beginning or happening.claims
        steps = _steps(happening)
        if beginning and steps:
            beginning = False
            newest, first = max(written.values(), default=0), steps[0]["step"]
            given_up = skipped >= CHECKPOINTS_KEPT and first == 1  # older ones are removed as new ones are written
            if first != newest + 1 and not given_up:
                yield f"step {first} at sequence {happening.sequence} does not follow the checkpoint of step {newest}"


def file_faults(
    row: Row, happenings: Sequence[Happening], checkpoints: Sequence[dict[str, Any]], store: ObjectStore
) -> Iterator[str]:
    """Files that are named but missing, torn, or published twice."""
    published = [artifact for happening in happenings if (artifact := _artifact(happening))]
    newest = {artifact["artifact_name"]: artifact for artifact in published}
    result = [*row.result["artifacts"], row.result["lora"]] if row.result else []
    for artifact in (*published, *result):
        replaced = artifact not in result and newest[artifact["artifact_name"]] is not artifact
        if not holds(store, artifact["uri"], artifact["content_digest"], or_nothing=replaced):
            yield f"{artifact['uri']} is not what was published"
    loras = [artifact for artifact in published if artifact["artifact_name"] == LORA_FILE]
    if row.state == "SUCCEEDED" and [lora["uri"] for lora in loras] != [result[-1]["uri"]]:
        yield f"the result is {result[-1]['uri']}, published were {[lora['uri'] for lora in loras]}"
    epochs = [int(found.group(1)) for artifact in published if (found := re.search(r"/(\d+)/", artifact["uri"]))]
    if epochs != sorted(epochs):
        yield f"files of epochs {epochs} were published in this order"
    for checkpoint in checkpoints:
        yield from checkpoint_faults(checkpoint, store)


def checkpoint_faults(checkpoint: dict[str, Any], store: ObjectStore) -> Iterator[str]:
    """What a checkpoint names and the store does not have so."""
    uri = checkpoint["uri"]
    if not holds(store, uri, checkpoint["manifest_digest"]):
        yield f"{uri} is not the manifest that was written"
        return
    for key, digest in parts_of(store.get(store.key_of(uri) or "")).items():
        if not holds(store, store.uri(key), digest):
            yield f"{key} is not what {uri} says"


def parts_of(manifest: bytes) -> dict[str, str]:
    """Keys and digests of the objects of a checkpoint."""
    return {part["key"]: part["digest"] for part in json.loads(manifest)["parts"].values()}


def bit_faults(row: Row, happenings: Sequence[Happening], reference: Reference, store: ObjectStore) -> Iterator[str]:
    """What differs from a run that nothing happened to."""
    result = row.result or {}
    if (lora := _learnt(store, result["lora"])) != reference.lora_digest:
        yield f"the LoRA is {lora[:12]}, undisturbed it is {reference.lora_digest[:12]}"
    if row.step != reference.total_steps:
        yield f"{row.step} steps instead of {reference.total_steps}"
    if (adapters := _adapters(result, store)) != reference.adapters:
        yield f"adapter files are {adapters} instead of {reference.adapters}"
    if _held_out(result) != reference.held_out:
        yield f"held-out losses are {_held_out(result)} instead of {reference.held_out}"
    measured = {happening.facts["step"] for happening in happenings if happening.kind == "validation_completed"}
    if measured != set(reference.losses):
        yield f"held-out losses were told after steps {sorted(measured)} instead of {sorted(reference.losses)}"
    for happening in happenings:
        for step in _steps(happening):
            if _measured(step) != reference.steps.get(step["step"]):
                yield f"step {step['step']} measured {_measured(step)} at sequence {happening.sequence}"
        after, loss = happening.facts.get("step"), happening.facts.get("loss")
        if happening.kind == "validation_completed" and loss != reference.losses.get(after):
            yield f"held-out loss after step {after} is {loss}"


def holds(store: ObjectStore, uri: str, digest: str, *, or_nothing: bool = False) -> bool:
    """Whether the store has these bytes under an address; `or_nothing`: or has no such object."""
    try:
        return hashlib.sha256(store.get(store.key_of(uri) or "")).hexdigest() == digest
    except ObjectMissing:
        return or_nothing


def _steps(happening: Happening) -> list[dict[str, Any]]:
    return list(happening.facts["steps"]) if happening.kind == "steps_completed" else []


def _measured(step: dict[str, Any]) -> tuple[float, float, float]:
    return step["loss"], step["gradient_norm"], step["learning_rate"]


def _skip_message(happening: Happening) -> str:
    return str(happening.facts["message"]) if happening.facts.get("reason") == "CHECKPOINT_SKIPPED" else ""


def _learnt(store: ObjectStore, file: dict[str, Any]) -> str:
    """Digest of the tensors in an adapter file: its header has the day on which its job began."""
    try:
        data = store.get(store.key_of(file["uri"]) or "")
    except ObjectMissing:
        return "nothing"
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def _adapters(result: dict[str, Any], store: ObjectStore) -> dict[str, str]:
    """Digests of what was published; the names of checkpoints tell how often a job was taken up."""
    files = {file["artifact_name"]: file for file in [*result["artifacts"], result["lora"]]}
    return {
        name: _learnt(store, file)
        for name, file in files.items()
        if name.endswith(".safetensors") and not name.startswith("checkpoints/")
    }


def _artifact(happening: Happening) -> dict[str, Any] | None:
    found = happening.facts.get("artifact") or happening.facts.get("image")
    return dict(found) if found else None


def _held_out(result: dict[str, Any]) -> tuple[Any, ...]:
    names = (
        "held_out_loss_base",
        "held_out_loss_lora",
        "held_out_loss_zero",
        "best_step",
        "held_out_loss_best",
        "stopped_early",
    )
    return tuple(result.get(name) for name in names)
