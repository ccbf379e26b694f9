"""Datasets with real pictures in them, and an encoder on the real models."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from services.common.object_store import ObjectStore
from services.encoder.datasets import Datasets, SampleRecord
from services.encoder.encoding import DatasetEncoder
from services.encoder.models import ModelThread
from services.encoder.settings import EncoderSettings

AddSample = Callable[..., SampleRecord]


@pytest.fixture
def datasets(store: ObjectStore) -> Datasets:
    """All datasets."""
    return Datasets(store)


@pytest.fixture
def dataset_id(datasets: Datasets, tenant: str) -> str:
    """An empty dataset."""
    return datasets.create(tenant, display_name="pictures", request_id="").dataset_id


@pytest.fixture
def encoder(datasets: Datasets, model_thread: ModelThread) -> DatasetEncoder:
    """An encoder of datasets."""
    return DatasetEncoder(datasets, model_thread, EncoderSettings(max_image_pixels=10_000))


@pytest.fixture
def add_sample(datasets: Datasets, tenant: str, dataset_id: str) -> AddSample:
    """Stores a sample: a picture of noise unless other bytes are given."""

    def add(name: str, *captions: str, data: bytes | None = None, seed: int | None = None) -> SampleRecord:
        data = noise_png(seed if seed is not None else sum(name.encode())) if data is None else data
        digest = hashlib.sha256(data).hexdigest()
        record = SampleRecord(
            sample_name=name, captions=captions or (f"picture {name}",), content_digest=digest, size_bytes=len(data)
        )
        datasets.put_sample(tenant, dataset_id, record, data)
        return record

    return add


def noise_png(seed: int, width: int = 64, height: int = 64) -> bytes:
    """A PNG file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
