"""Datasets with real pictures in them, and an encoder on the real models."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from services.common.cache import CachedObject, DatasetManifest, read_manifest
from services.common.object_store import ObjectStore
from services.encoder.datasets import Datasets
from services.encoder.encoding import DatasetEncoder, Progress
from services.encoder.models import ModelThread
from services.encoder.records import EncodingOptions, EncodingOutcome, SampleRecord
from services.encoder.settings import EncoderSettings

AddSample = Callable[..., SampleRecord]
OPTIONS = EncodingOptions(resolutions_px=(64,))


class Desk:
    """One dataset and its encoder."""

    def __init__(self, encoder: DatasetEncoder, datasets: Datasets, tenant: str, dataset_id: str) -> None:
        self.encoder, self.datasets, self.tenant, self.dataset_id = encoder, datasets, tenant, dataset_id
        self.progress: list[Progress] = []

    def encode(self, options: EncodingOptions = OPTIONS, **changes: object) -> EncodingOutcome:
        """Encode from beginning to end, keeping every progress."""
        self.progress.clear()
        options = options.model_copy(update=changes)
        wanted = self.datasets.begin_encoding(self.tenant, self.dataset_id, options)
        outcome, pointer = self.encoder.encode_dataset(self.tenant, self.dataset_id, wanted, self.progress.append)
        self.datasets.end_encoding(self.tenant, self.dataset_id, wanted, outcome, pointer)
        return outcome

    @property
    def manifest(self) -> DatasetManifest:
        """What the last encoding published."""
        pointer = self.datasets.pointer(self.tenant, self.dataset_id)
        assert pointer
        return read_manifest(self.datasets.store, self.tenant, pointer.manifest_digest)

    def tensors(self, cached: CachedObject) -> dict[str, torch.Tensor]:
        """The tensors of an object, its digest checked."""
        data = self.datasets.store.get(cached.key, digest=cached.digest)
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(data)
        return tensors


@pytest.fixture
def datasets(store: ObjectStore) -> Datasets:
    """All datasets."""
    return Datasets(store)


@pytest.fixture
def dataset_id(datasets: Datasets, tenant: str) -> str:
    """An empty dataset."""
    return datasets.create(tenant, display_name="pictures", request_id="").dataset_id


@pytest.fixture
def encoder(datasets: Datasets, model_thread: ModelThread) -> Iterator[DatasetEncoder]:
    """An encoder of datasets."""
    encoder = DatasetEncoder(datasets, model_thread, EncoderSettings(max_image_pixels=10_000))
    yield encoder
    encoder.close()


@pytest.fixture
def desk(encoder: DatasetEncoder, datasets: Datasets, tenant: str, dataset_id: str) -> Desk:
    """An empty dataset and its encoder."""
    return Desk(encoder, datasets, tenant, dataset_id)


@pytest.fixture
def add_sample(datasets: Datasets, tenant: str, dataset_id: str) -> AddSample:
    """Adds a sample to the dataset: its name, its captions, and the seed of its picture or the bytes of its file."""

    def add(
        name: str, *captions: str, data: bytes | None = None, seed: int | None = None, repeats: int = 1
    ) -> SampleRecord:
        data = noise_png(seed if seed is not None else sum(name.encode())) if data is None else data
        digest = hashlib.sha256(data).hexdigest()
        record = SampleRecord(
            sample_name=name,
            captions=captions or (f"picture {name}",),
            content_digest=digest,
            size_bytes=len(data),
            repeats=repeats,
        )
        datasets.put_sample(tenant, dataset_id, record, data)
        return record

    return add


def noise_png(seed: int, width: int = 64, height: int = 64) -> bytes:
    """A PNG file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return png(Image.fromarray(pixels))


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()
