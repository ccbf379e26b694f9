"""What a file says of where it comes from, and that nothing else in it depends on that."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from PIL import Image
from safetensors.torch import load

from services.common.cache import CachedCaption, CachedObject, CachedSample
from services.trainer.base_names import BaseKind
from services.trainer.config import TrainConfig
from services.trainer.jobs import Job, NewJob
from services.trainer.provenance import MOST_TAGS_BYTES, as_file_name, tag_frequency, thumbnail
from services.trainer.results.history import Preview, small_picture
from services.trainer.worker import Worker
from tests.services.trainer import test_run_job
from tests.services.trainer.disturbed import digest
from tests.services.trainer.test_run_job import CONFIG, Bench

bench, refusing_server = test_run_job.bench, test_run_job.refusing_server  # fixtures are found by these names


def header(data: bytes) -> dict[str, str]:
    """The metadata of a file."""
    fields: dict[str, dict[str, str]] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return fields["__metadata__"]


def run(bench: Bench, config: TrainConfig = CONFIG, display_name: str = "") -> Job:
    """A job with a name, run to its end."""
    bench.jobs.create(bench.tenant, NewJob(dataset=bench.reference, config=config, display_name=display_name))
    return bench.run_next()


def test_programs_find_name_base_trigger_word_day_and_size(bench: Bench) -> None:
    bench.publish(bench.manifest.model_copy(update={"trigger_word": "sks cat"}))
    base = replace(bench.place.base, name="black-forest-labs/FLUX.1-schnell", kind=BaseKind.SCHNELL)
    bench.worker = Worker(replace(bench.place, base=base), bench.stop)
    job = run(bench, display_name="Cats: <best>/1")
    for name in ("lora.safetensors", "lora.kohya.safetensors"):
        told = header(bench.file(job, name))
        assert (told["modelspec.title"], told["ss_output_name"]) == ("Cats: <best>/1", "Cats_ _best__1")
        assert (told["modelspec.architecture"], told["ss_sd_model_name"]) == ("flux-1-schnell/lora", "FLUX.1-schnell")
        assert told["modelspec.trigger_phrase"] == told["fluxsmith.trigger_word"] == "sks cat"
        assert "sks cat" in told["modelspec.usage_hint"]
        assert told["modelspec.date"] == datetime.fromtimestamp(job.start_time_s or 0, UTC).date().isoformat()
        assert told["modelspec.resolution"] == "64x64"
        assert told["fluxsmith.base_kind"] == "schnell"


def test_header_tells_where_the_file_comes_from(bench: Bench) -> None:
    told = header(bench.file(run(bench), "lora.safetensors"))
    assert told["fluxsmith.dataset_digest"] == bench.reference.manifest_digest
    assert (told["fluxsmith.base_model"], told["fluxsmith.base_kind"]) == ("flux-tiny", "unknown")
    assert told["fluxsmith.encoder_fingerprint"] == bench.manifest.encoder_fingerprint
    assert TrainConfig(**json.loads(told["fluxsmith.config"])) == CONFIG
    assert (told["ss_num_train_images"], told["ss_seed"]) == ("3", "3")
    assert told["ss_network_dim"] == told["ss_network_alpha"] == "2"


def test_equal_adapters_differ_in_nothing_but_what_is_told_of_them(bench: Bench) -> None:
    first, second = run(bench, display_name="one"), run(bench, display_name="two")
    told = [header(bench.file(job, "lora.safetensors")) for job in (first, second)]
    assert digest(bench, first) == digest(bench, second) == told[0]["sshs_model_hash"] == told[1]["sshs_model_hash"]
    different = {key for key in told[0] if told[0][key] != told[1][key]} - {"modelspec.date"}
    assert different == {"modelspec.title", "ss_output_name"}
    assert "modelspec.trigger_phrase" not in told[0]
    assert "modelspec.thumbnail" not in told[0]


def test_alpha_of_the_header_is_that_of_the_tensors(bench: Bench) -> None:
    job = run(bench, CONFIG.model_copy(update={"alpha": 7.0, "target_regex": r".*\.to_out\.0"}))
    data = bench.file(job, "lora.kohya.safetensors")
    assert {float(alpha) for key, alpha in load(data).items() if key.endswith(".alpha")} == {2.0}
    assert (header(data)["ss_network_alpha"], header(data)["ss_network_dim"]) == ("2", "2")


def test_captions_are_counted_only_when_asked_for(bench: Bench) -> None:
    assert "ss_tag_frequency" not in header(bench.file(run(bench), "lora.safetensors"))
    asked = bench.file(run(bench, CONFIG.model_copy(update={"tag_frequency": True})), "lora.safetensors")
    counts = json.loads(header(asked)["ss_tag_frequency"])
    assert counts == {"captions": {f"caption {number}/0": 1 for number in range(3)}}


def sample(*captions: str) -> CachedSample:
    """A sample with these captions."""
    cached = CachedObject(key="k", digest="d", size_bytes=1)
    return CachedSample(
        sample_name="s", views=(), captions=tuple(CachedCaption(caption=text, embedding=cached) for text in captions)
    )


def test_tags_are_counted_once_a_caption_and_the_rarest_are_left_out() -> None:
    samples = [sample("Cat, cat , red", "cat,,"), sample("dog, red"), *(sample(f"tag {n:09}") for n in range(5000))]
    text = tag_frequency(samples)["ss_tag_frequency"]
    counts = json.loads(text)["captions"]
    assert list(counts.items())[:3] == [("cat", 2), ("red", 2), ("dog", 1)]
    assert len(text) < MOST_TAGS_BYTES + 100


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("my style", "my style"),
        ('a/b\\c:d*e?f"g<h>i|j', "a_b_c_d_e_f_g_h_i_j"),
        ("猫の絵 v2", "猫の絵 v2"),
        (" .. ", "fluxsmith LoRA"),
        ("é" * 150, "é" * 100),
    ],
)
def test_title_becomes_a_file_name(title: str, name: str) -> None:
    assert as_file_name(title) == name


def preview(step: int, color: str, prompt: str = "a") -> Preview:
    """A preview of one color."""
    data = io.BytesIO()
    Image.new("RGB", (1024, 512), color).save(data, "PNG")
    return Preview(step=step, prompt=prompt, picture=small_picture(data.getvalue()))


def test_thumbnail_is_the_last_preview_up_to_the_step_of_the_file() -> None:
    previews = [preview(0, "black"), preview(5, "red"), preview(10, "blue"), preview(10, "green", "b")]
    for step, color in ((7, (255, 0, 0)), (10, (0, 0, 255))):
        uri = thumbnail(previews, step)["modelspec.thumbnail"]
        kind, _, data = uri.partition(",")
        assert kind == "data:image/jpeg;base64"
        assert len(uri) < 30_000
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert (image.format, image.size) == ("JPEG", (256, 128))
            pixel = image.getpixel((100, 60))
        assert isinstance(pixel, tuple)
        assert all(abs(a - b) < 12 for a, b in zip(pixel, color, strict=True))
    assert thumbnail(previews, 4) == {}
