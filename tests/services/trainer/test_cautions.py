"""Warnings of a job's data: sizes that do not fill batches, and pictures that are both measured on and learnt."""

from __future__ import annotations

import pytest

from services.common.cache import CachedObject, CachedSample, CachedVariant, CachedView
from services.trainer.cautions import small_batches, trained_and_held_out
from tests.services.trainer import test_run_job
from tests.services.trainer.conftest import MakeDataset
from tests.services.trainer.test_run_job import CONFIG, Bench

bench, refusing_server = test_run_job.bench, test_run_job.refusing_server  # fixtures are found by these names
EIGHT_SHAPES = [64, 64, 80, 80, 96, 112, 128, 144]


def sample(
    name: str, *, height_px: int = 64, width_px: int = 64, latents: str = "", content: str = "", repeats: int = 1
) -> CachedSample:
    cached = CachedObject(key=name, digest=latents or f"of {name}", size_bytes=1)
    view = CachedView(height_px=height_px, width_px=width_px, variants=(CachedVariant(latents=cached),))
    return CachedSample(sample_name=name, content_digest=content, views=(view,), captions=(), repeats=repeats)


def test_sizes_that_do_not_fill_batches_are_told_with_their_cost_and_what_to_do() -> None:
    samples = [sample(f"{number}", height_px=height_px) for number, height_px in enumerate(EIGHT_SHAPES)]
    told = small_batches(samples, 8)
    assert "8 of 8 images are in batches of fewer than 8" in told
    assert "there are 6 sizes. An epoch takes 6 batches where 1 would do, each of 1.3 images on average" in told
    assert "use a batch_size of 1," in told
    assert small_batches(samples, 1) == ""


def test_repeats_fill_batches() -> None:
    lone = [sample(f"{number}", height_px=64 + 16 * number) for number in range(4)]
    assert "4 of 4 images are in batches of fewer than 8" in small_batches(lone, 8)
    repeated = [sample(f"{number}", height_px=64 + 16 * number, repeats=8) for number in range(4)]
    assert small_batches(repeated, 8) == ""
    assert "40 of 40 images" in small_batches([sample("a", repeats=20), sample("b", width_px=96, repeats=20)], 40)


def test_tall_and_wide_pictures_of_one_size_are_in_batches_of_their_own() -> None:
    shapes = [(64, 96)] * 5 + [(96, 64)] * 5
    told = small_batches([sample(f"{n}", height_px=h, width_px=w) for n, (h, w) in enumerate(shapes)], 10)
    assert "10 of 10 images are in batches of fewer than 10" in told
    assert "there are 2 sizes. An epoch takes 2 batches where 1 would do" in told


def test_batches_that_are_full_but_for_the_last_are_not_told_of() -> None:
    assert small_batches([sample(f"{number}") for number in range(9)], 8) == ""
    many = [sample(f"{number}", height_px=64 + 16 * (number % 2)) for number in range(40)]
    assert small_batches(many, 8) == ""  # 6 in place of 5


@pytest.mark.parametrize(
    ("learnt", "named"),
    [
        (sample("a", latents="x"), "1 of 2 held-out images is trained on too: h (as a)"),
        (sample("h", content="y"), "1 of 2 held-out images is trained on too: h;"),
        (sample("a"), ""),
    ],
)
def test_pictures_are_the_same_by_their_file_or_by_their_latents(learnt: CachedSample, named: str) -> None:
    told = trained_and_held_out([learnt], [sample("h", latents="x", content="y"), sample("other")])
    assert told.startswith(named)
    assert bool(told) == bool(named)


def test_few_of_many_are_named() -> None:
    samples = [sample(f"{number}") for number in range(9)]
    told = trained_and_held_out(samples, samples)
    assert "9 of 9 held-out images are trained on too: 0, 1, 2, 3, 4 and 4 more;" in told


def test_a_job_warns_of_both_before_its_first_step(bench: Bench, make_dataset: MakeDataset) -> None:
    bench.publish(make_dataset([(height_px, 64) for height_px in EIGHT_SHAPES]))
    bench.measure_on(make_dataset([(EIGHT_SHAPES[0], 64)]))
    warnings = bench.warnings(bench.run(CONFIG.model_copy(update={"steps": 1, "batch_size": 8})))
    assert "6 batches where 1 would do" in warnings["SMALL_BATCHES"]
    assert "1 of 1 held-out images is trained on too: sample-000" in warnings["HELD_OUT_TRAINED"]
