"""What the encoder's benchmarks stand on: models from a folder or with random weights, an S3 store, datasets in it."""

from __future__ import annotations

import hashlib
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from benchmarks.encoding import DTYPE
from benchmarks.pictures import CaptionedFile
from benchmarks.scales import Scale
from benchmarks.service_memory import random_models
from services.common.cache import ManifestPointer, read_manifest
from services.common.object_store import ObjectStore
from services.common.settings import ServiceSettings, StoreSettings
from services.encoder.datasets import Datasets
from services.encoder.encoding import DatasetEncoder, Progress
from services.encoder.inference import EncoderModels, Loaders
from services.encoder.loading import LoadChoices, Precision
from services.encoder.models import ModelThread, load_models
from services.encoder.records import EncodingOptions, SampleRecord
from services.encoder.settings import EncoderSettings
from services.stack import Stack

TENANT = "benchmark"


def folder_models(folder: Path, device: torch.device, precision: Precision) -> EncoderModels:
    """The models of a folder, as the service loads them."""
    service = ServiceSettings(base_model=str(folder), device=str(device))
    models = load_models(service, EncoderSettings(t5_precision=precision, models="one"))
    return _loaded_once(replace(models, one_at_a_time=False))


def scale_models(scale: Scale, device: torch.device, precision: Precision) -> EncoderModels:
    """Models with random weights, in bf16 but for T5's quantised ones."""
    choices = LoadChoices(device=device, dtype=DTYPE, t5_precision=precision, vae_tiling=False)
    digest = hashlib.sha256(scale.name.encode()).hexdigest()
    models = random_models(scale, choices, one_at_a_time=False)
    return _loaded_once(replace(models, image_fingerprint=digest, text_fingerprint=digest, fingerprint=digest))


def _loaded_once(models: EncoderModels) -> EncoderModels:
    """The models with their parts in memory, where the pipeline that they are compared with finds the same ones."""
    vae, clip, t5 = models.loaders.vae(), models.loaders.clip(), models.loaders.t5()
    models = replace(models, loaders=Loaders(vae=lambda: vae, clip=lambda: clip, t5=lambda: t5))
    models.load("vae", "text_encoder", "text_encoder_2")
    return models


@contextmanager
def store_settings(kind: str) -> Iterator[StoreSettings]:
    """Where an S3 store serves: `embedded` starts SeaweedFS on an empty folder, `settings` reads FLUXSMITH_STORE_*."""
    if kind == "settings":
        settings = StoreSettings()
        ObjectStore(settings).ensure_bucket()
        yield settings
        return
    with tempfile.TemporaryDirectory(prefix="fluxsmith-benchmark-") as folder:
        stack = Stack(Path(folder))
        try:
            stack.start_store()
            yield stack.store_settings
        finally:
            stack.stop()


def uploaded(datasets: Datasets, files: Iterable[CaptionedFile], *, tenant: str = TENANT) -> str:
    """Store files as a new dataset; its identifier."""
    dataset_id = datasets.create(tenant, display_name="benchmark", request_id=uuid.uuid4().hex).dataset_id
    for file in files:
        data = file.path.read_bytes()
        record = SampleRecord(
            sample_name=file.path.stem,
            captions=(file.caption,),
            content_digest=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
        )
        datasets.put_sample(tenant, dataset_id, record, data)
    return dataset_id


class EncoderDesk:
    """The service's own encoder of datasets."""

    def __init__(self, store: ObjectStore, models: EncoderModels) -> None:
        self.models = ModelThread(models)
        self.datasets = Datasets(store)
        self.encoder = DatasetEncoder(self.datasets, self.models, EncoderSettings())

    def encode(
        self,
        dataset_id: str,
        resolution_px: int,
        *,
        tenant: str = TENANT,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> tuple[Progress, ManifestPointer]:
        """Encode a dataset from beginning to end; the last progress, and where the manifest is."""
        options = EncodingOptions(resolutions_px=(resolution_px,), upscale=True)
        wanted = self.datasets.begin_encoding(tenant, dataset_id, options)
        last = Progress()

        def note(progress: Progress) -> None:
            nonlocal last
            last = progress
            if on_progress:
                on_progress(progress)

        outcome, pointer = self.encoder.encode_dataset(tenant, dataset_id, wanted, note)
        self.datasets.end_encoding(tenant, dataset_id, wanted, outcome, pointer)
        if pointer is None:
            raise RuntimeError(f"the encoding failed: {outcome.failure}")
        return last, pointer

    def tensors(
        self, tenant: str, pointer: ManifestPointer, files: Iterable[CaptionedFile]
    ) -> Iterator[dict[str, Tensor]]:
        """Everything that is cached of each file, its latents and its caption's embeddings."""
        manifest = read_manifest(self.datasets.store, tenant, pointer.manifest_digest)
        samples = {sample.sample_name: sample for sample in manifest.samples}
        for file in files:
            found: dict[str, Tensor] = {}
            for cached in samples[file.path.stem].objects():
                found |= safetensors.torch.load(self.datasets.store.get(cached.key, digest=cached.digest))
            yield found

    def close(self) -> None:
        """End the threads."""
        self.encoder.close()
        self.models.close()
