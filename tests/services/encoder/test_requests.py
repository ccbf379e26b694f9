"""Checks of the encoder's requests: the field is named, the reason is stable, the remedy is there."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fluxsmith.v1 import encoder_pb2 as pb

from services.common.caller import Caller
from services.common.errors import InvalidInput, NotFound
from services.common.object_store import ObjectStore
from services.encoder import wire
from services.encoder.problems import Problem
from services.encoder.records import EncodingOptions
from services.encoder.requests import check_captions, encoding_options, latents_keys, sample_record, sheet_size
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
    assert record.model_dump() == {**GOOD, "captions": ("an apple",), "repeats": 1}


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("sample_name", "", "FIELD_INVALID"),
        ("sample_name", "x" * 201, "FIELD_INVALID"),
        ("sample_name", "a\nb", "FIELD_INVALID"),
        ("sample_name", "\u200b", "FIELD_INVALID"),
        ("captions", [], "CAPTION_EMPTY"),
        ("captions", [""], "CAPTION_EMPTY"),
        ("captions", ["good", " \t\n"], "CAPTION_EMPTY"),
        ("captions", ["good", "\u200b\u3164"], "CAPTION_EMPTY"),
        ("captions", ["a\0b"], "FIELD_INVALID"),
        ("captions", ["a\rb"], "FIELD_INVALID"),
        ("captions", ["x" * 21], "CAPTION_TOO_LONG"),
        ("captions", ["ü" * 11], "CAPTION_TOO_LONG"),
        ("captions", ["x"] * 17, "FIELD_INVALID"),
        ("size_bytes", 0, "NOT_AN_IMAGE"),
        ("size_bytes", 2001, "TOO_LARGE"),
        ("repeats", 0, "FIELD_INVALID"),
        ("repeats", 1001, "FIELD_INVALID"),
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


FULL = EncodingOptions(
    resolutions_px=(64, 128),
    flip=True,
    skip_bad_samples=True,
    max_bad_share=0.25,
    bucket_step_px=32,
    upscale=True,
    random_crops=3,
    crop_seed=7,
    latent_form="MEAN",
    alpha_policy="MASK",
    background_color="#102030",
    trigger_word="sks",
)


def test_unset_options_mean_their_defaults() -> None:
    assert encoding_options(pb.EncodingOptions(), 512) == EncodingOptions(resolutions_px=(512,))


@pytest.mark.parametrize("options", [FULL, EncodingOptions(resolutions_px=(512,))], ids=["full", "default"])
def test_options_go_there_and_back_unchanged(options: EncodingOptions) -> None:
    assert encoding_options(wire.options_message(options), 1024) == options


def test_full_options_leave_no_field_out() -> None:
    default = EncodingOptions(resolutions_px=(512,))
    assert all(getattr(FULL, name) != getattr(default, name) for name in EncodingOptions.model_fields)
    several = {field.name for field, _ in wire.options_message(FULL).ListFields()}
    single = {field.name for field, _ in wire.options_message(default).ListFields()}
    assert several | {"resolution_px"} == set(pb.EncodingOptions.DESCRIPTOR.fields_by_name)
    assert "resolution_px" in single


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("resolution_px", value) for value in (0, -16, 48, 65, 1000, 2064)),
        ("resolutions_px", [64, 65]),
        ("resolutions_px", [64, 80, 96, 112, 128]),
        *(("bucket_step_px", value) for value in (0, 8, 24, 272)),
        *(("random_crops", value) for value in (-1, 0, 9)),
        *(("crop_seed", value) for value in (-1, 2**32)),
        *(("max_bad_share", value) for value in (-0.1, 1.1, math.nan)),
        *(("background_color", value) for value in ("white", "#fff", "#1234567")),
        *(("trigger_word", value) for value in ("x" * 65, "a\nb", " sks")),
        *((name, 9) for name in ("bad_sample_policy", "latent_form", "alpha_policy")),
    ],
)
def test_option_out_of_range_is_named_with_a_remedy(field: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=f"options.{field}") as caught:
        encoding_options(pb.EncodingOptions(**{field: value}), 512)  # type: ignore[arg-type]
    assert caught.value.remedy


def test_all_wrong_options_are_named_at_once() -> None:
    sent = pb.EncodingOptions(resolution_px=100, crop_seed=-1, background_color="red", random_crops=99)
    with pytest.raises(InvalidInput) as caught:
        encoding_options(sent, 512)
    fields = [violation.field for violation in caught.value.violations]
    assert sorted(fields) == [
        f"options.{n}" for n in ("background_color", "crop_seed", "random_crops", "resolution_px")
    ]
    assert "Use 0 to 4294967295." in caught.value.remedy


def test_one_resolution_excludes_several() -> None:
    with pytest.raises(InvalidInput, match="comes with resolution_px"):
        encoding_options(pb.EncodingOptions(resolution_px=64, resolutions_px=[64]), 512)


def test_more_variants_than_memory_is_meant_for_are_refused() -> None:
    encoding_options(pb.EncodingOptions(random_crops=8, flip=True), 512)
    with pytest.raises(InvalidInput, match="18 variants"):
        encoding_options(pb.EncodingOptions(random_crops=3, flip=True, resolutions_px=[64, 128, 192]), 512)


@pytest.mark.parametrize("page_size", [-1, 101])
def test_contact_sheet_has_a_limit(page_size: int) -> None:
    assert (sheet_size(0), sheet_size(100)) == (24, 100)
    with pytest.raises(InvalidInput, match="page_size"):
        sheet_size(page_size)


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


@pytest.mark.parametrize("name", ["at 3.04\u202fPM.png", "\u6771\u3000\u4eac.png", "\U0001f468\u200d\U0001f469.png"])
def test_names_and_captions_have_any_space_and_any_joined_character(name: str) -> None:
    header = pb.SampleHeader(**{**GOOD, "sample_name": name, "captions": ["Mr\u00a0X\n\tsits"]})
    assert sample_record(header, LIMITS).sample_name == name
