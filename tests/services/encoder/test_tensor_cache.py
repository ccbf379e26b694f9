"""Cached tensors: found by what they are computed from, checked by what they are, never overwritten by others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from services.common.cache import CachedSample
from services.common.object_store import ObjectStore
from services.encoder.models import EncoderModels
from services.encoder.tensor_cache import IndexEntry, NewObject, TensorCache
from tests.services.damage import damage

RECIPE = {"caption": "an apple", "t5_tokens": 32}
ENTRY = IndexEntry(picture_digest="d", sample=CachedSample(sample_name="a", views=(), captions=()), warnings=())


@pytest.fixture
def tensors(store: ObjectStore, tenant: str, encoder_models: EncoderModels) -> TensorCache:
    """An empty cache."""
    return TensorCache(store, tenant, encoder_models)


def write(tensors: TensorCache, value: float) -> NewObject:
    """Compute and write a tensor for the recipe."""
    new = tensors.pack("captions", RECIPE, {"t5": torch.full((2, 3), value)})
    tensors.write(new)
    return new


def test_what_was_written_is_found_by_its_recipe(tensors: TensorCache) -> None:
    assert tensors.find("captions", RECIPE) is None
    new = write(tensors, 1.0)
    assert tensors.find("captions", RECIPE) == new.cached


@pytest.mark.parametrize("change", [{"caption": "an apple "}, {"t5_tokens": 512}])
def test_another_recipe_finds_nothing(tensors: TensorCache, change: dict[str, object]) -> None:
    write(tensors, 1.0)
    assert tensors.find("captions", {**RECIPE, **change}) is None


def test_damaged_object_is_not_found_and_mended_by_the_same_bytes(tensors: TensorCache, store: ObjectStore) -> None:
    new = write(tensors, 1.0)
    damage(store, new.cached.key)
    assert not tensors.sound(new.cached)
    assert tensors.find("captions", RECIPE) is None
    assert write(tensors, 1.0).cached == new.cached
    assert tensors.sound(new.cached)


def test_other_bytes_for_the_same_recipe_leave_the_first_alone(tensors: TensorCache) -> None:
    first, second = write(tensors, 1.0), write(tensors, 1.5)
    assert first.cached.key != second.cached.key
    assert tensors.sound(first.cached)
    assert tensors.sound(second.cached)
    assert tensors.find("captions", RECIPE) in {first.cached, second.cached}


def test_tenants_and_encoders_do_not_see_each_other(
    tensors: TensorCache, store: ObjectStore, tenant: str, encoder_models: EncoderModels
) -> None:
    write(tensors, 1.0)
    assert TensorCache(store, f"{tenant}-other", encoder_models).find("captions", RECIPE) is None
    other = replace(encoder_models, text_fingerprint="f" * 64)
    assert TensorCache(store, tenant, other).find("captions", RECIPE) is None


def test_another_t5_leaves_the_latents_where_they_are(
    store: ObjectStore, tenant: str, encoder_models: EncoderModels
) -> None:
    tensors = TensorCache(store, tenant, encoder_models)
    new = tensors.pack("latents", RECIPE, {"mean": torch.zeros(2)})
    tensors.write(new)
    other_t5 = replace(encoder_models, text_fingerprint="f" * 64, fingerprint="e" * 64)
    assert TensorCache(store, tenant, other_t5).find("latents", RECIPE) == new.cached
    other_vae = replace(encoder_models, image_fingerprint="f" * 64, fingerprint="e" * 64)
    assert TensorCache(store, tenant, other_vae).find("latents", RECIPE) is None


def test_index_entry_is_read_as_it_was_written(tensors: TensorCache) -> None:
    assert tensors.entry(RECIPE) is None
    tensors.write_entry(RECIPE, ENTRY)
    assert tensors.entry(RECIPE) == ENTRY


@pytest.mark.parametrize("data", [b"no json", ENTRY.model_dump_json().replace('"a"', '"b"').encode()])
def test_damaged_index_entry_is_none(tensors: TensorCache, store: ObjectStore, tenant: str, data: bytes) -> None:
    tensors.write_entry(RECIPE, ENTRY)
    (key,) = (key for key in store.keys(f"{tenant}/cache/") if "/samples/" in key)
    damage(store, key, data)
    assert tensors.entry(RECIPE) is None
