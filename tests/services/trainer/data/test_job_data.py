"""The two datasets of a job: which samples each has, what does not fit together, and how large previews are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from diffusers import FluxTransformer2DModel

from services.common.cache import CachedSample, DatasetManifest
from services.common.errors import NotReady
from services.common.object_store import ObjectStore
from services.trainer.config import TrainConfig
from services.trainer.data.cached_dataset import CachedDataset
from services.trainer.data.held_out import split
from services.trainer.data.job_data import Data, read_data
from services.trainer.database.job_store import JobStore
from services.trainer.jobs import DatasetReference, NewJob
from tests.services.trainer.conftest import MakeDataset, publish
from tests.services.trainer.database.test_job_store import take

Read = Callable[..., Data]
SQUARE, WIDE, TALL = (64, 64), (48, 80), (80, 48)


@pytest.fixture
def read(store: ObjectStore, tenant: str, transformer: FluxTransformer2DModel, job_store: JobStore) -> Read:
    """Reads the data of a job on this dataset."""

    def reference(manifest: DatasetManifest) -> DatasetReference:
        return DatasetReference(dataset_id="ds-test", manifest_digest=publish(store, tenant, manifest))

    def make(manifest: DatasetManifest, *, held_out: DatasetManifest | None = None, **fields: object) -> Data:
        measured = reference(held_out) if held_out else None
        config = TrainConfig.model_validate(fields)
        job_store.create(tenant, NewJob(dataset=reference(manifest), held_out=measured, config=config))
        return read_data(take(job_store), transformer, store, lambda: None)

    return make


def names(dataset: CachedDataset | tuple[CachedSample, ...] | None) -> list[str]:
    """What the samples are called."""
    samples = dataset.samples if isinstance(dataset, CachedDataset) else dataset or ()
    return [sample.sample_name for sample in samples]


def test_share_is_measured_on_and_the_rest_trained_on(read: Read, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE] * 7)
    data = read(manifest, held_out_share=0.3, seed=4)
    rest, share = split(manifest.samples, 0.3, 4)
    assert len(share) == 2
    assert names(data.held_out) == names(share)
    assert names(data.training) == names(rest)


def test_seed_of_the_job_decides_what_is_held_out(read: Read, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE] * 12)
    chosen = {tuple(names(read(manifest, held_out_share=0.25, seed=seed).held_out)) for seed in (1, 2)}
    assert len(chosen) == 2


def test_prompts_get_the_trigger_word_as_captions_do(read: Read, make_dataset: MakeDataset) -> None:
    prompts = ("[trigger] on a beach", "a drawing", "a drawing by ohwx", "")
    manifest = make_dataset([SQUARE]).model_copy(update={"trigger_word": "ohwx"})
    data = read(manifest, preview_prompts=prompts)
    shown = data.with_trigger(TrainConfig(preview_prompts=prompts)).preview_prompts
    assert shown == ("ohwx on a beach", "ohwx, a drawing", "a drawing by ohwx", "ohwx")
    assert not list(data.trigger_warnings(TrainConfig(preview_prompts=prompts)))


def test_place_for_a_trigger_word_that_there_is_not_is_warned_of(read: Read, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE] * 2, captions=2)
    caption = manifest.samples[0].captions[0].model_copy(update={"caption": "a [trigger]"})
    sample = manifest.samples[0].model_copy(update={"captions": (caption, *manifest.samples[0].captions[1:])})
    data = read(manifest.model_copy(update={"samples": (sample, manifest.samples[1])}))
    config = TrainConfig(preview_prompts=("[trigger] on a beach", "a beach"))
    (warning,) = data.trigger_warnings(config)
    assert warning.reason == "TRIGGER_MISSING"
    assert "[trigger] stays as it stands in 1 preview prompt and the captions of 1 sample," in warning.message
    assert data.with_trigger(config) == config


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("ohwx", "sks"), "to train on have the trigger word 'ohwx', those to measure on have the trigger word 'sks'"),
        (("ohwx", ""), "those to measure on have no trigger word"),
        (("ohwx", "ohwx"), ""),
    ],
)
def test_held_out_dataset_with_another_trigger_word_is_warned_of(
    read: Read, make_dataset: MakeDataset, words: tuple[str, str], told: str
) -> None:
    manifest, measured = (make_dataset([SQUARE]).model_copy(update={"trigger_word": word}) for word in words)
    warnings = list(read(manifest, held_out=measured).trigger_warnings(TrainConfig()))
    assert [warning.reason for warning in warnings] == ["TRIGGER_DIFFERS"] * bool(told)
    assert all(told in warning.message for warning in warnings)


def test_without_a_share_everything_is_trained_on(read: Read, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE] * 2)
    data = read(manifest)
    assert data.held_out is None
    assert names(data.training) == names(manifest.samples)


def test_held_out_dataset_is_measured_on(read: Read, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE] * 3)
    data = read(manifest, held_out=manifest.model_copy(update={"samples": manifest.samples[:1]}))
    assert names(data.held_out) == ["sample-000"]
    assert names(data.training) == names(manifest.samples)


def test_held_out_dataset_of_another_encoder_is_refused(read: Read, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE])
    with pytest.raises(NotReady) as refused:
        read(manifest, held_out=manifest.model_copy(update={"encoder_fingerprint": "e" * 64}))
    assert refused.value.reason == "ENCODER_MISMATCH"


@pytest.mark.parametrize(
    ("sizes", "usual"),
    [([WIDE, SQUARE, WIDE], WIDE), ([SQUARE, WIDE, WIDE], WIDE), ([WIDE, TALL], TALL), ([TALL, WIDE], TALL)],
)
def test_usual_size_is_the_commonest_and_of_those_the_largest(
    read: Read, make_dataset: MakeDataset, sizes: list[tuple[int, int]], usual: tuple[int, int]
) -> None:
    size = read(make_dataset(sizes)).usual_size()
    assert (size.height_px, size.width_px) == usual
