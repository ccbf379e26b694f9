"""Samples that are still being encoded: in the manifest's order, waited for, and never other than the manifest's."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from services.common.cache import (
    DatasetManifest,
    EncodingEnd,
    EncodingHead,
    EncodingPart,
    encoding_prefix,
    part_ends_at,
)
from services.common.errors import NotReady, Unavailable
from services.common.object_store import ObjectStore
from services.trainer.config import TrainConfig
from services.trainer.data import arrival
from services.trainer.data.arrival import ArrivingSamples
from services.trainer.data.cached_dataset import CachedDataset
from tests.services.damage import damage
from tests.services.trainer.conftest import MakeDataset, cached, publish

ENCODING = "enc-1"


class Encoder:
    """Writes what the encoder writes, when it is told to."""

    def __init__(self, store: ObjectStore, tenant: str, manifest: DatasetManifest) -> None:
        self.store, self.tenant, self.manifest = store, tenant, manifest
        self.prefix = encoding_prefix(tenant, ENCODING)

    def begin(self) -> None:
        """What holds for all samples."""
        head = EncodingHead.model_validate(self.manifest.model_dump(include=set(EncodingHead.model_fields)))
        self.store.put(f"{self.prefix}head.json", head.model_dump_json().encode())

    def list(self, count: int) -> None:
        """The parts that are whole after `count` samples."""
        begins = 0
        for ends in (number for number in range(1, count + 1) if part_ends_at(number)):
            part = EncodingPart(samples=self.manifest.samples[begins:ends])
            self.store.put(f"{self.prefix}{begins:06}.json", part.model_dump_json().encode())
            begins = ends

    def end(self, *, failure: str = "") -> str:
        """The end; returns the manifest's digest."""
        digest = "" if failure else publish(self.store, self.tenant, self.manifest)
        end = EncodingEnd(manifest_digest=digest, failure=failure)
        self.store.put(f"{self.prefix}end.json", end.model_dump_json().encode())
        return digest


@pytest.fixture
def encoder(store: ObjectStore, tenant: str, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """Ten samples to be encoded."""
    monkeypatch.setattr(arrival, "POLL_S", 0.01)
    return Encoder(store, tenant, make_dataset([(64, 64), (48, 80)] * 5))


def arriving(encoder: Encoder, while_waiting: Callable[[], None] = lambda: None) -> ArrivingSamples:
    """The samples as a job sees them."""
    return ArrivingSamples(encoder.store, encoder.tenant, ENCODING, while_waiting=while_waiting)


class Impatient(Exception):
    """Somebody wants the job to end."""


def give_up() -> None:
    """What a job's reporter does when it is cancelled."""
    raise Impatient


def test_finished_samples_are_there_before_the_end(encoder: Encoder) -> None:
    encoder.begin()
    encoder.list(9)
    samples = arriving(encoder, give_up)
    assert [samples[index] for index in range(8)] == list(encoder.manifest.samples[:8])
    with pytest.raises(Impatient):
        samples[8]
    with pytest.raises(Impatient):
        len(samples)


def test_after_the_end_all_are_there(encoder: Encoder) -> None:
    encoder.begin()
    encoder.list(4)
    digest = encoder.end()
    samples = arriving(encoder, give_up)
    assert list(samples) == list(encoder.manifest.samples)
    assert (len(samples), samples.manifest_digest()) == (10, digest)
    assert samples.head().latent_scale == encoder.manifest.latent_scale


def test_waiting_ends_when_the_sample_comes(encoder: Encoder) -> None:
    threading.Timer(0.1, encoder.begin).start()
    threading.Timer(0.2, encoder.list, [4]).start()
    threading.Timer(0.3, encoder.end).start()
    samples = arriving(encoder)
    assert samples.head()
    assert samples[3] == encoder.manifest.samples[3]
    assert list(samples) == list(encoder.manifest.samples)


def test_failed_encoding_fails_the_wait_with_its_cause(encoder: Encoder) -> None:
    encoder.begin()
    encoder.list(4)
    samples = arriving(encoder)
    assert samples[3]
    encoder.end(failure="one sample is no image")
    with pytest.raises(NotReady, match="one sample is no image") as caught:
        samples[4]
    assert caught.value.reason == "DATASET_FAILED"


def test_encoder_that_has_gone_is_not_waited_for_for_ever(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "PATIENCE_S", 0.1)
    with pytest.raises(Unavailable, match="no sample has been encoded"):
        arriving(encoder).head()


@pytest.mark.parametrize("change", ["samples", "encoder"])
def test_encoding_that_another_encoder_has_done_anew_is_never_mixed_in(encoder: Encoder, change: str) -> None:
    encoder.begin()
    encoder.list(8)
    samples = arriving(encoder)
    assert samples.head()
    assert samples[7]
    if change == "samples":  # one of them has been left out since
        encoder.manifest = encoder.manifest.model_copy(update={"samples": encoder.manifest.samples[1:]})
    else:
        encoder.manifest = encoder.manifest.model_copy(update={"encoder_fingerprint": "e" * 64})
    encoder.end()
    with pytest.raises(Unavailable, match="encoded anew"):
        len(samples)
    assert list(arriving(encoder)) == list(encoder.manifest.samples)  # as the job sees them that begins anew


def test_damaged_part_is_made_up_for_by_the_end(encoder: Encoder) -> None:
    encoder.begin()
    encoder.list(8)
    part = encoder.store.get(f"{encoder.prefix}000004.json")
    damage(encoder.store, f"{encoder.prefix}000004.json", part.replace(b"sample-004", b"sample-005"))
    with pytest.raises(Impatient):
        arriving(encoder, give_up)[4]
    encoder.end()
    assert list(arriving(encoder, give_up)) == list(encoder.manifest.samples)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_early_job_sees_what_a_late_one_sees(encoder: Encoder, batch_size: int) -> None:
    config = TrainConfig(batch_size=batch_size, seed=3, caption_dropout=0.3)
    late = list(cached(encoder.store, encoder.manifest).batches(config, 25, in_order_first=True))
    encoder.begin()
    encoder.list(4)
    samples = arriving(encoder)
    threading.Timer(0.2, encoder.list, [8]).start()
    threading.Timer(0.4, encoder.end).start()
    early = CachedDataset(encoder.store, samples.head(), samples).batches(config, 25, in_order_first=True)
    for (one,), (other,) in zip(early, late, strict=True):
        tensors = {name: tensor for name, tensor in vars(one).items() if tensor is not None}
        assert len(tensors) == 5
        assert all(torch.equal(tensor, getattr(other, name)) for name, tensor in tensors.items())
