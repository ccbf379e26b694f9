"""Locks by name: one holder a name, and nothing left of names that nobody holds."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from services.common.errors import NotFound
from services.encoder.datasets import Datasets
from services.encoder.locks import NamedLocks


def test_one_at_a_time_holds_a_name() -> None:
    locks, inside, most = NamedLocks(), [], []

    def work(number: int) -> None:
        with locks.held("t", number % 3):
            inside.append(number % 3)
            most.append(inside.count(number % 3))
            inside.remove(number % 3)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(3000)))
    assert set(most) == {1}
    assert len(locks) == 0


def test_another_name_is_not_waited_for() -> None:
    locks, entered = NamedLocks(), threading.Event()

    def enter() -> None:
        with locks.held("b"):
            entered.set()

    with locks.held("a"):
        threading.Thread(target=enter).start()
        assert entered.wait(30)
        assert len(locks) >= 1


def test_a_lock_is_given_back_by_what_fails() -> None:
    locks = NamedLocks()
    with suppress(ValueError), locks.held("a"):
        raise ValueError
    assert len(locks) == 0


def test_identifiers_that_never_were_and_those_that_were_leave_nothing(datasets: Datasets, tenant: str) -> None:
    for number in range(50):
        with pytest.raises(NotFound):
            datasets.delete(tenant, f"ds-{number:020x}")
    datasets.delete(tenant, datasets.create(tenant, display_name="d", request_id="").dataset_id)
    assert len(datasets._locks) == 0
