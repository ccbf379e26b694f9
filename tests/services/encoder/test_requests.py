"""Checks of the encoder's requests: the field is named, the reason is stable, the remedy is there."""

from __future__ import annotations

from typing import Any

import pytest
from fluxsmith.v1 import encoder_pb2 as pb

from services.common.caller import Caller
from services.common.errors import InvalidInput, NotFound
from services.common.object_store import ObjectStore
from services.encoder.datasets import EncodingOptions
from services.encoder.images import Problem
from services.encoder.requests import check_captions, encoding_options, latents_keys, sample_record
from services.encoder.settings import EncoderSettings

LIMITS = EncoderSettings(max_image_bytes=2000, max_caption_bytes=20)
GOOD: dict[str, Any] = {
    "sample_name": "a.png",
    "captions": ["an apple"],
    "size_bytes": 2000,
    "content_digest": "0123456789abcdef" * 4,
}


def test_good_header_becomes_a_record() -> None:
    record = sample_record(pb.SampleHeader(**GOOD), LIMITS)
    assert record.model_dump() == {**GOOD, "captions": ("an apple",)}


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("sample_name", "", "FIELD_INVALID"),
        ("sample_name", "x" * 201, "FIELD_INVALID"),
        ("sample_name", "a\nb", "FIELD_INVALID"),
        ("captions", [], "CAPTION_EMPTY"),
        ("captions", [""], "CAPTION_EMPTY"),
        ("captions", ["good", " \t\n"], "CAPTION_EMPTY"),
        ("captions", ["x" * 21], "CAPTION_TOO_LONG"),
        ("captions", ["ü" * 11], "CAPTION_TOO_LONG"),
        ("captions", ["x"] * 17, "FIELD_INVALID"),
        ("size_bytes", 0, "NOT_AN_IMAGE"),
        ("size_bytes", 2001, "TOO_LARGE"),
        ("content_digest", "", "FIELD_INVALID"),
        ("content_digest", "0123456789ABCDEF" * 4, "FIELD_INVALID"),
    ],
)
def test_bad_header_is_refused_by_field_and_reason(field: str, value: object, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        sample_record(pb.SampleHeader(**{**GOOD, field: value}), LIMITS)
    assert caught.value.reason == reason
    assert field in caught.value.violations[0].field
    assert caught.value.remedy


def test_sample_with_a_bad_field_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"a\.png"):
        sample_record(pb.SampleHeader(**{**GOOD, "size_bytes": 0}), LIMITS)


def test_name_may_be_anything_a_person_can_read() -> None:
    name = "Ünï/日本 🍎 ../a.png"
    assert sample_record(pb.SampleHeader(**{**GOOD, "sample_name": name}), LIMITS).sample_name == name


def test_prompt_may_be_empty_where_that_is_allowed() -> None:
    check_captions("captions", ["", "x"], LIMITS, most=2, empty_allowed=True)
    with pytest.raises(InvalidInput):
        check_captions("captions", [], LIMITS, most=2, empty_allowed=True)


def test_reasons_are_those_of_the_contract() -> None:
    names = {value.removeprefix("SAMPLE_PROBLEM_REASON_") for value in pb.SampleProblemReason.keys()}  # noqa: SIM118
    assert {problem.name for problem in Problem} | {"UNSPECIFIED"} == names


def test_unset_options_mean_their_defaults() -> None:
    assert encoding_options(pb.EncodingOptions(), 512) == EncodingOptions(resolution_px=512)


def test_options_are_taken_as_they_are() -> None:
    sent = pb.EncodingOptions(resolution_px=64, flip=True, bad_sample_policy=pb.BAD_SAMPLE_POLICY_SKIP)
    assert encoding_options(sent, 512) == EncodingOptions(resolution_px=64, flip=True, skip_bad_samples=True)


@pytest.mark.parametrize("resolution_px", [0, -16, 48, 65, 1000, 2064])
def test_resolution_out_of_range_is_refused(resolution_px: int) -> None:
    with pytest.raises(InvalidInput, match=f"options.resolution_px is {resolution_px}"):
        encoding_options(pb.EncodingOptions(resolution_px=resolution_px), 512)


def test_latents_of_the_tenant_are_found(store: ObjectStore, tenant: str) -> None:
    stored = store.put(f"{tenant}/latents", b"x")
    assert latents_keys([store.uri(stored.key)], Caller(tenant=tenant), store) == [stored.key]


def test_latents_of_anybody_else_are_not_found(store: ObjectStore, tenant: str) -> None:
    stored = store.put(f"{tenant}/latents", b"x")
    for uri in (store.uri(stored.key), store.uri("other/none"), "s3://elsewhere/other/x", "other/x", ""):
        with pytest.raises(NotFound):
            latents_keys([uri], Caller(tenant="other"), store)


@pytest.mark.parametrize("count", [0, 17])
def test_number_of_latents_is_limited(store: ObjectStore, count: int) -> None:
    with pytest.raises(InvalidInput, match=f"has {count} entries"):
        latents_keys(["s3://b/k"] * count, Caller(tenant="t"), store)
