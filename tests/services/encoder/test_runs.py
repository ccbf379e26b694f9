"""Encodings under way: one a dataset, and none is forgotten."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from services.common.cache import read_manifest
from services.common.errors import NotReady
from services.encoder.datasets import Datasets
from services.encoder.encoding import DatasetEncoder
from services.encoder.models import ModelThread
from services.encoder.problems import Problem
from services.encoder.records import WantedEncoding
from services.encoder.runs import EncodingRuns
from services.encoder.settings import EncoderSettings
from tests.services.encoder.conftest import OPTIONS, AddSample


@pytest.fixture
def runs(datasets: Datasets, encoder: DatasetEncoder) -> Iterator[EncodingRuns]:
    """Nothing under way yet."""
    runs = EncodingRuns(datasets, encoder)
    yield runs
    runs.close()


def wait(runs: EncodingRuns, tenant: str, dataset_id: str) -> None:
    """Wait until the encoding has ended."""
    deadline = time.monotonic() + 60
    while runs.progress(tenant, dataset_id) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_started_encoding_ends_with_a_manifest(
    runs: EncodingRuns, datasets: Datasets, tenant: str, dataset_id: str, add_sample: AddSample
) -> None:
    add_sample("a")
    runs.start(tenant, dataset_id, OPTIONS)
    wait(runs, tenant, dataset_id)
    assert datasets.pointer(tenant, dataset_id)
    assert datasets.wanted_encoding(tenant, dataset_id) is None


def test_asking_twice_is_one_encoding(
    runs: EncodingRuns, datasets: Datasets, tenant: str, dataset_id: str, add_sample: AddSample
) -> None:
    for number in range(4):
        add_sample(f"{number}")
    for _ in range(3):
        runs.start(tenant, dataset_id, OPTIONS)
    wait(runs, tenant, dataset_id)
    pointer = datasets.pointer(tenant, dataset_id)
    assert pointer
    assert (pointer.sample_count, pointer.cached_count) == (4, 0)


def test_encoding_of_a_stopped_encoder_is_taken_up_by_the_next(
    datasets: Datasets,
    encoder: DatasetEncoder,
    model_thread: ModelThread,
    tenant: str,
    dataset_id: str,
    add_sample: AddSample,
) -> None:
    add_sample("a")
    stopped = EncodingRuns(datasets, encoder)
    stopped._stopping.set()  # as if the stop came between the note and the first sample
    stopped.start(tenant, dataset_id, OPTIONS)
    stopped.close()
    assert datasets.pointer(tenant, dataset_id) is None
    assert datasets.wanted_encoding(tenant, dataset_id)
    following = EncodingRuns(datasets, DatasetEncoder(datasets, model_thread, EncoderSettings()))
    assert following.take_up() >= 1
    wait(following, tenant, dataset_id)
    following.close()
    assert datasets.pointer(tenant, dataset_id)


def test_encoding_that_was_begun_through_another_encoder_meanwhile_is_done_too(
    runs: EncodingRuns, datasets: Datasets, tenant: str, dataset_id: str, add_sample: AddSample
) -> None:
    for number in range(8):
        add_sample(f"{number}", seed=number)
    runs.start(tenant, dataset_id, OPTIONS)
    other = WantedEncoding(encoding_id="enc-other", options=OPTIONS.model_copy(update={"flip": True}))
    datasets._write(tenant, dataset_id, "encoding.json", other)
    wait(runs, tenant, dataset_id)
    outcome = datasets.outcome(tenant, dataset_id)
    assert outcome
    assert outcome.options == other.options
    assert datasets.wanted_encoding(tenant, dataset_id) is None


def test_failure_is_kept_for_whoever_asks(
    runs: EncodingRuns, datasets: Datasets, tenant: str, dataset_id: str, add_sample: AddSample
) -> None:
    add_sample("text", data=b"hello")
    runs.start(tenant, dataset_id, OPTIONS)
    wait(runs, tenant, dataset_id)
    outcome = datasets.outcome(tenant, dataset_id)
    assert outcome
    assert "'text'" in outcome.failure


def test_lost_original_fails_the_encoding_with_its_remedy(
    runs: EncodingRuns, datasets: Datasets, tenant: str, dataset_id: str, add_sample: AddSample
) -> None:
    record = add_sample("a")
    datasets.store.delete(f"{tenant}/datasets/{dataset_id}/originals/{record.content_digest}")
    runs.start(tenant, dataset_id, OPTIONS)
    wait(runs, tenant, dataset_id)
    outcome = datasets.outcome(tenant, dataset_id)
    assert outcome
    assert "upload it again" in outcome.failure
    assert outcome.problems[0].problem is Problem.ORIGINAL_LOST


def test_what_was_accepted_is_encoded_however_closely_it_follows(
    runs: EncodingRuns, datasets: Datasets, tenant: str, dataset_id: str, add_sample: AddSample
) -> None:
    add_sample("a")
    for number in range(20):
        runs.start(tenant, dataset_id, OPTIONS.model_copy(update={"flip": number % 2 == 1}))
        wanted = OPTIONS.model_copy(update={"flip": number % 2 == 0})
        while True:
            try:
                runs.start(tenant, dataset_id, wanted)
                break
            except NotReady:
                continue
        wait(runs, tenant, dataset_id)
        pointer = datasets.pointer(tenant, dataset_id)
        assert pointer
        manifest = read_manifest(datasets.store, tenant, pointer.manifest_digest)
        assert len(manifest.samples[0].views[0].variants) == 1 + wanted.flip


def test_of_two_that_ask_at_once_for_different_things_one_is_refused(
    runs: EncodingRuns, tenant: str, dataset_id: str, add_sample: AddSample
) -> None:
    for number in range(6):
        add_sample(f"{number}")
    answers: list[str] = []

    def ask(flip: bool) -> None:
        try:
            runs.start(tenant, dataset_id, OPTIONS.model_copy(update={"flip": flip}))
            answers.append("accepted")
        except NotReady:
            answers.append("refused")

    threads = [threading.Thread(target=ask, args=(flip,)) for flip in (False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait(runs, tenant, dataset_id)
    assert sorted(answers) == ["accepted", "refused"]


def test_encoding_whose_end_cannot_be_noted_can_be_asked_for_again(
    runs: EncodingRuns,
    datasets: Datasets,
    tenant: str,
    dataset_id: str,
    add_sample: AddSample,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("a bug")

    add_sample("a")
    monkeypatch.setattr(datasets, "end_encoding", broken)
    runs.start(tenant, dataset_id, OPTIONS)
    wait(runs, tenant, dataset_id)
    monkeypatch.undo()
    assert datasets.wanted_encoding(tenant, dataset_id)
    runs.start(tenant, dataset_id, OPTIONS)
    wait(runs, tenant, dataset_id)
    assert datasets.pointer(tenant, dataset_id)
