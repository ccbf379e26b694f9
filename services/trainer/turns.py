"""Several jobs take turns on one base: who has it, for how long, and who is next.

Torch-free. Each job runs in a thread of its own and is given a `Turn`. One thread at a time holds the base; whose
adapter is on the base is another matter: it stays on until somebody else gets the base, and is taken off by that one.

The next is fair among tenants, then among a tenant's users, then among a user's jobs, by the seconds that each had the
base: fair queueing. Who comes, or comes back, starts a slice below what each would have by now had all shared alike. So
a newcomer goes first, absence earns no more than that, and a stream of short jobs does not hold up a long one: it falls
behind that mark, which goes on, and is before them soon.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

POLL_S = 0.1
"""Between two looks of one that waits at its `check`, and at whether the thread that has the base still lives."""


class Swapped(Protocol):
    """What a job has on the base, as `swap.Swap`.

    Called by whichever thread gets the base next, never by two at once.
    """

    def out(self) -> None:
        """Leave the base as it was before the job, also when something is raised."""

    def back(self) -> None:
        """Undo `out`; when something is raised, the base is as after `out`."""


class Turns:
    """The turns on one base. A slice ends with the first `Turn.pass_on` after `slice_s` seconds that finds others.

    `clock` gives the seconds that are shared; it never goes back.
    """

    def __init__(self, slice_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._slice_s = slice_s
        self._clock = clock
        self._changed = threading.Condition()
        self._all = _Account(None, slice_s)
        self._holder: Turn | None = None
        self._inside: Turn | None = None  # whose adapter is on the base
        self._charged_s = 0.0  # when the holder was last charged
        self._ends_s = 0.0  # the holder's slice
        self._hurrying: list[Turn] = []  # those that wait and are urgent

    def join(
        self,
        tenant: str,
        user_id: str,
        check: Callable[[], None] = lambda: None,
        urgent: Callable[[], bool] = lambda: False,
    ) -> Turn:
        """The turn of one job. Both are called every 0.1 s while it waits.

        What `check` raises comes out of the call that waits. Once `urgent` says so, the job is next, after the step
        that is under way: it is to end, and can clean up only when it has the base.
        """
        return Turn(self, tenant, user_id, check, urgent)

    def _enter(self, turn: Turn) -> None:
        with self._changed:
            user = self._all.child(turn.tenant).child(turn.user_id)
            turn._account = user.child(turn)
            turn._account.turn = turn

    def _take(self, turn: Turn, *, back: bool) -> None:
        """Wait for the base, empty it, and put back what the turn had on it."""
        self._wait(turn)
        if self._inside is not turn:
            self._empty()
            if back:
                turn._swap.back()
            with self._changed:
                self._inside = turn
        self._ends_s = self._clock() + self._slice_s

    def _wait(self, turn: Turn) -> None:
        with self._changed:
            self._want(turn, True)
            self._advance()
        try:
            while True:
                with self._changed:
                    if self._holder is not turn:
                        self._changed.wait(POLL_S)
                        self._bury()
                    if turn._error:
                        raise turn._error
                    if self._holder is turn:
                        return
                turn._check()
                if turn._urgent() and turn not in self._hurrying:
                    self._hurrying.append(turn)
        except BaseException:
            self._give_up(turn)
            raise
        finally:
            if turn in self._hurrying:
                self._hurrying.remove(turn)

    def _empty(self) -> None:
        """Swap out whoever is inside; what goes wrong with that is told to its own thread."""
        if not (other := self._inside):
            return
        try:
            other._swap.out()
        except (RuntimeError, MemoryError) as error:  # torch's own, no memory among them
            other._error = error
        finally:
            with self._changed:
                self._inside = None
                self._changed.notify_all()

    def _give_up(self, turn: Turn) -> None:
        """Want the base no more: the turn that is inside keeps it if nobody else has it yet, else it is swapped out."""
        with self._changed:
            while self._inside is turn and self._holder not in (None, turn):
                self._changed.wait(POLL_S)  # for the other to swap us out, or to give up too
                self._bury()
            if self._inside is turn:
                self._want(turn, True)
                self._advance()
            else:
                self._let_go(turn)

    def _let_go(self, turn: Turn) -> None:
        """Want the base no more, and leave it to the next if it was held."""
        self._charge()
        if self._holder is turn:
            self._holder = None
        self._want(turn, False)
        self._advance()

    def _over(self, turn: Turn) -> bool:
        """Whether the slice is over and somebody else is to have the next: that one has it then."""
        with self._changed:
            self._charge()
            following = self._next()
            if following is turn:
                self._ends_s = self._charged_s + self._slice_s
                return False
            self._grant(following)
            return True

    def _leave(self, turn: Turn) -> None:
        with self._changed:
            self._let_go(turn)
            if self._inside is turn:
                self._inside = None
            turn._account.leave()

    def _bury(self) -> None:
        """Take the base from a thread that is no more."""
        holder = self._holder
        if holder and not holder._thread.is_alive():
            self._let_go(holder)

    def _want(self, turn: Turn, wanting: bool) -> None:
        self._charge()  # so that one who comes starts where the holder is now
        turn._account.want(wanting)

    def _charge(self) -> None:
        now_s = self._clock()
        if self._holder:
            self._holder._account.charge(now_s - self._charged_s)
            self._holder._served_s += now_s - self._charged_s
        self._charged_s = now_s

    def _advance(self) -> None:
        """Give the base to the next if nobody has it."""
        if self._holder is None and self._all.wanting:
            self._grant(self._next())

    def _next(self) -> Turn:
        hurrying = [turn for turn in self._hurrying if turn._account.wanting]
        return hurrying[0] if hurrying else self._all.next()

    def _grant(self, turn: Turn) -> None:
        self._charged_s = self._clock()
        self._holder = turn
        self._changed.notify_all()


class Turn:
    """One job's part in the turns; for the job's own thread, but for `served_s`."""

    def __init__(
        self, turns: Turns, tenant: str, user_id: str, check: Callable[[], None], urgent: Callable[[], bool]
    ) -> None:
        self.tenant = tenant
        self.user_id = user_id
        self._turns = turns
        self._check = check
        self._urgent = urgent
        self._account: _Account
        self._swap: Swapped
        self._thread: threading.Thread
        self._error: Exception | None = None
        self._served_s = 0.0

    @property
    def served_s(self) -> float:
        """Seconds that the job has had the base, until now."""
        with self._turns._changed:
            if self._turns._holder is self:
                self._turns._charge()
            return self._served_s

    @contextmanager
    def hold(self, swap: Swapped) -> Iterator[None]:
        """Wait for the base and have it in the block, whose end gives it to the next however it comes.

        In the block the caller attaches its adapter and takes it off. `swap.out` and `swap.back` are called only while
        `pass_on` or `apart` are under way. Whatever comes out of those two, an exception of `check` too, the job
        either still has the base with its adapter on it, or is swapped out and has it no more: so what cleans up after
        an exception must touch nothing of the base while the job is swapped out.
        """
        self._swap, self._error, self._thread = swap, None, threading.current_thread()
        self._turns._enter(self)
        try:
            self._turns._take(self, back=False)
            yield
        finally:
            self._turns._leave(self)

    def pass_on(self) -> None:
        """Between steps: if the slice is over and others are due, let them; return when it is this job's turn again.

        Two comparisons when there is nothing to do. Raises what `check` and the swap raise.
        """
        turns = self._turns
        if not turns._hurrying and (turns._clock() < turns._ends_s or turns._all.wanting < 2):
            return
        if turns._over(self):
            turns._take(self, back=True)

    @contextmanager
    def apart(self, *, goes_on_after: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Inside `hold`, a block without the base: whoever wants it meanwhile has it, and swaps this job out.

        When nobody does, nothing is swapped. The block must touch neither the base nor the job's tensors: another
        thread may be moving them. It is followed by a wait for the base, but not when it ends with an exception: that
        ends the job, unless it is one that the job `goes_on_after`.
        """
        with self._turns._changed:
            self._turns._let_go(self)
        try:
            yield
        except goes_on_after:
            self._turns._take(self, back=True)
            raise
        except BaseException:
            self._turns._give_up(self)
            raise
        self._turns._take(self, back=True)


class _Account:
    """Seconds of the base that a tenant, user or job had, comparable among those with the same parent only."""

    _numbers = itertools.count()

    def __init__(self, parent: _Account | None, slice_s: float) -> None:
        self.parent = parent
        self.turn: Turn | None = None  # of a job
        self.children: dict[object, _Account] = {}
        self.wanting = 0
        """Turns under it that have the base or wait for it."""
        self._slice_s = slice_s
        self._number = next(_Account._numbers)
        self._seconds = 0.0
        self._fair_seconds = 0.0  # what a child would have that always wanted the base, had all shared alike

    def child(self, name: object) -> _Account:
        return self.children.setdefault(name, _Account(self, self._slice_s))

    def leave(self) -> None:
        """Remove a job, and with the last of them its user and tenant."""
        account = self
        while account.parent and not account.children:
            siblings = account.parent.children
            account.parent.children = {name: each for name, each in siblings.items() if each is not account}
            account = account.parent

    def want(self, wanting: bool) -> None:
        """Count a job, which one, and those above it, as one that wants the base or no longer does."""
        if wanting == bool(self.wanting):
            return
        account: _Account | None = self
        while account:
            if wanting and not account.wanting and account.parent:
                account._seconds = max(account._seconds, account.parent._fair_seconds - self._slice_s)
            account.wanting += 1 if wanting else -1
            account = account.parent

    def charge(self, seconds: float) -> None:
        account = self
        while account.parent:
            account._seconds += seconds
            account.parent._fair_seconds += seconds / len(account.parent._wanting_children())
            account = account.parent

    def next(self) -> Turn:
        """Whose turn it is, of those that want one."""
        account = self
        while account.turn is None:
            account = min(account._wanting_children(), key=lambda each: (each._seconds, each._number))
        return account.turn

    def _wanting_children(self) -> list[_Account]:
        return [each for each in self.children.values() if each.wanting]
