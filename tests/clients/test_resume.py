"""Going on after an outage: bounded, patient, and without losing or repeating what a stream said."""

from collections.abc import Generator

import pytest
from fluxsmith import RetryPolicy
from fluxsmith._outage import Outage
from fluxsmith._resume import resuming
from fluxsmith.errors import NotFound, Unavailable


class Clock:
    """A clock that the test moves."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_pauses_grow_and_are_bounded() -> None:
    outage = Outage(RetryPolicy(outage_s=1000), clock=Clock())
    delays = [outage.next_delay_s(Unavailable("away")) for _ in range(8)]
    assert 0.125 <= delays[0] <= 0.25
    assert 2.5 <= delays[-1] <= 5.0


def test_outage_ends_with_the_error_itself() -> None:
    clock = Clock()
    outage = Outage(RetryPolicy(outage_s=10), clock=clock)
    outage.next_delay_s(Unavailable("away"))
    clock.now_s = 10.0
    last = Unavailable("still away")
    with pytest.raises(Unavailable) as caught:
        outage.next_delay_s(last)
    assert caught.value is last


def test_recovery_starts_the_count_anew() -> None:
    clock = Clock()
    outage = Outage(RetryPolicy(outage_s=10), clock=clock)
    outage.next_delay_s(Unavailable("away"))
    outage.recovered()
    clock.now_s = 100.0
    assert outage.next_delay_s(Unavailable("away again")) <= 0.5


def test_service_is_not_asked_before_the_time_it_named() -> None:
    outage = Outage(RetryPolicy(outage_s=60), clock=Clock())
    assert outage.next_delay_s(Unavailable("busy", retry_after_s=7.0)) == 7.0


class Numbers:
    """A stream of 0 to 9 that breaks after each three and goes on where it was left."""

    def __init__(self) -> None:
        self.next = 0

    def open_stream(self) -> Generator[int, None, None]:
        for _ in range(3):
            if self.ended():
                return
            self.next += 1
            yield self.next - 1
        raise Unavailable("broken")

    def ended(self) -> bool:
        return self.next == 10


def test_broken_stream_loses_and_repeats_nothing() -> None:
    numbers = Numbers()
    outage = Outage(RetryPolicy(outage_s=60))
    assert list(resuming(numbers.open_stream, ended=numbers.ended, outage=outage)) == list(range(10))


def test_stream_that_ends_early_is_opened_again() -> None:
    opened: list[int] = []

    def open_stream() -> Generator[int, None, None]:
        opened.append(len(opened))
        yield opened[-1]

    items = resuming(open_stream, ended=lambda: len(opened) == 2, outage=Outage(RetryPolicy(outage_s=60)))
    assert list(items) == [0, 1]


def test_stream_that_only_repeats_itself_does_not_count_as_recovered() -> None:
    def open_stream() -> Generator[str, None, None]:
        yield "the same"

    items = resuming(open_stream, ended=lambda: False, outage=Outage(RetryPolicy(outage_s=0.6)))
    with pytest.raises(Unavailable, match="ended the stream early") as caught:
        list(items)
    assert caught.value.reason == "STREAM_ENDED"


def test_other_errors_are_not_tried_again() -> None:
    def open_stream() -> Generator[int, None, None]:
        yield 1
        raise NotFound("no such job")

    with pytest.raises(NotFound):
        list(resuming(open_stream, ended=lambda: True, outage=Outage(RetryPolicy(outage_s=60))))


def test_leaving_early_closes_the_stream() -> None:
    closed = []

    def open_stream() -> Generator[int, None, None]:
        try:
            yield from range(100)
        finally:
            closed.append(True)

    items = resuming(open_stream, ended=lambda: True, outage=Outage(RetryPolicy(outage_s=60)))
    assert next(iter(items)) == 0
    items.close()
    assert closed
