"""Which samples each step of a run shows: of one that goes on, of an epoch in order, of several batches a step."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from itertools import chain, islice

import pytest
import torch

from services.common.cache import CachedSample
from services.common.object_store import ObjectStore
from services.trainer.config.choices import SigmaSampling
from services.trainer.data.cached_dataset import CachedDataset
from tests.services.trainer.conftest import MakeDataset, cached
from tests.services.trainer.data.test_cached_dataset import (
    CONFIG,
    MIXED,
    SQUARE,
    caption_numbers,
    same,
    shown,
)


@pytest.mark.parametrize("in_order_first", [False, True])
@pytest.mark.parametrize("first_step", [0, 1, 2, 3, 4, 7, 8])
def test_run_that_goes_on_in_the_middle_sees_what_it_would_have_seen(
    store: ObjectStore, make_dataset: MakeDataset, first_step: int, *, in_order_first: bool
) -> None:
    manifest = make_dataset(MIXED, repeats=2)  # epochs of six batches: steps end within them and with them
    config = CONFIG.model_copy(update={"gradient_accumulation_steps": 2})
    whole, rest = (
        list(
            cached(store, manifest).batches(
                config, 8, in_order_first=in_order_first, most_batches=15, first_step=skipped
            )
        )
        for skipped in (0, first_step)
    )
    assert [len(step) for step in rest] == [len(step) for step in whole[first_step:]]
    assert all(same(*pair) for pair in zip(chain(*whole[first_step:]), chain(*rest), strict=True))


def test_after_an_epoch_in_order_comes_the_second_one(store: ObjectStore, make_dataset: MakeDataset) -> None:
    dataset = cached(store, make_dataset(MIXED))  # three batches an epoch
    shuffled, in_order = (list(shown(dataset, CONFIG, 6, in_order_first=first)) for first in (False, True))
    assert all(same(*pair) for pair in zip(shuffled[3:], in_order[3:], strict=True))


def test_nothing_is_read_for_steps_that_are_left_out(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE] * 6)
    read: list[str] = []

    class Noting(ObjectStore):
        def get(self, key: str, *, digest: str | None = None) -> bytes:
            read.append(key)
            return super().get(key, digest=digest)

    noting = Noting.__new__(Noting)
    vars(noting).update(vars(store))
    (step,) = cached(noting, manifest).batches(CONFIG, 3, first_step=2)
    assert len(step[0].sigma_B) == 2
    assert len(read) == 4  # two pictures and their captions


def test_run_that_goes_on_waits_for_no_more_samples_than_it_needs(
    store: ObjectStore, make_dataset: MakeDataset
) -> None:
    manifest = make_dataset([SQUARE] * 8)
    dataset = CachedDataset(store, manifest, Watched(manifest.samples, last=5))
    steps = dataset.batches(CONFIG, 4, in_order_first=True, first_step=2)
    assert caption_numbers(store, manifest, next(steps)[0]) == [4, 5]
    steps.close()


class Watched(list[CachedSample]):
    """Samples that note which of them were asked for, and fail where they are told to."""

    def __init__(self, samples: Iterable[CachedSample], *, last: int = 1000) -> None:
        super().__init__(samples)
        self.asked: list[int] = []
        self._last = last

    def __getitem__(self, index: int) -> CachedSample:  # type: ignore[override]
        self.asked.append(index)
        if index > self._last:
            raise CancelledError
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[CachedSample]:
        return (self[index] for index in range(len(self)))


def test_epoch_in_order_needs_no_more_samples_than_it_shows(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE] * 20)
    watched = Watched(manifest.samples)
    steps = CachedDataset(store, manifest, watched).batches(CONFIG, 9, in_order_first=True)
    (batch,) = next(steps)
    steps.close()
    assert caption_numbers(store, manifest, batch) == [0, 1]
    assert max(watched.asked) <= 5  # two steps are read ahead


def test_what_waiting_for_a_sample_raises_comes_out_at_the_step_that_needs_it(
    store: ObjectStore, make_dataset: MakeDataset
) -> None:
    manifest = make_dataset([SQUARE] * 8)
    dataset = CachedDataset(store, manifest, Watched(manifest.samples, last=4))
    steps = dataset.batches(CONFIG, 4, in_order_first=True)
    seen = [caption_numbers(store, manifest, batch) for (batch,) in islice(steps, 2)]
    with pytest.raises(CancelledError):
        next(steps)
    assert seen == [[0, 1], [2, 3]]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


@pytest.mark.parametrize("repeats", [1, 2])
def test_epoch_in_order_shows_the_same_as_a_shuffled_one(
    store: ObjectStore, make_dataset: MakeDataset, repeats: int
) -> None:
    manifest = make_dataset(MIXED, repeats=repeats)
    dataset = cached(store, manifest)
    steps = dataset.batches_per_epoch(1)
    config = CONFIG.model_copy(update={"batch_size": 1})
    first, second = (
        [number for batch in part for number in caption_numbers(store, manifest, batch)]
        for part in (
            shown(dataset, config, steps, in_order_first=True),
            islice(shown(dataset, config, 2 * steps, in_order_first=True), steps, None),
        )
    )
    assert first[: len(MIXED)] == list(range(len(MIXED)))
    assert Counter(first) == Counter(second)
    assert first != second


@pytest.mark.parametrize("accumulation", [2, 3])
def test_accumulated_batches_are_those_of_steps_without(
    store: ObjectStore, make_dataset: MakeDataset, accumulation: int
) -> None:
    dataset = cached(store, make_dataset(MIXED, captions=2))
    config = CONFIG.model_copy(update={"gradient_accumulation_steps": accumulation})
    steps = list(dataset.batches(config, 3))
    assert [len(step) for step in steps] == [accumulation] * 3  # beyond the end of the epoch, which has three batches
    alone = shown(dataset, CONFIG, 3 * accumulation)
    assert all(same(*pair) for pair in zip(chain.from_iterable(steps), alone, strict=True))


def test_last_step_has_fewer_batches_where_they_end_with_it(store: ObjectStore, make_dataset: MakeDataset) -> None:
    dataset = cached(store, make_dataset(MIXED))
    config = CONFIG.model_copy(update={"gradient_accumulation_steps": 2, "sigma_stratified": True})
    steps = list(dataset.batches(config, 2, most_batches=3))
    assert [len(step) for step in steps] == [2, 1]
    assert sum(len(batch.sigma_B) for step in steps for batch in step) == len(MIXED)


def test_stratified_levels_of_a_step_lie_one_in_each_share(store: ObjectStore, make_dataset: MakeDataset) -> None:
    fields = {"gradient_accumulation_steps": 3, "sigma_stratified": True, "sigma_sampling": SigmaSampling.COSMAP}
    dataset = cached(store, make_dataset(MIXED))
    orders = []
    for step in dataset.batches(CONFIG.model_copy(update=fields), 4):
        sigma = torch.cat([batch.sigma_B for batch in step]).double()
        places = (5 * 2 / torch.pi * torch.atan(1 / (1 - sigma) - 1)).floor().int().tolist()  # COSMAP backwards
        assert sorted(places) == [0, 1, 2, 3, 4]
        orders.append(tuple(places))
    assert len(set(orders)) == 4
