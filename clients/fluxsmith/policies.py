"""How long the client waits and how often it tries: values that `Client` and `AsyncClient` take."""

from dataclasses import dataclass

from fluxsmith.errors import FieldViolation, InvalidRequest


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """How long an answer may take, in seconds. What takes as long as its work does, such as `job.watch`, has none."""

    call_s: float = 30.0
    """Any call that is answered at once. Over 0, at most 3600."""
    render_s: float = 300.0
    """Drawing one page of a contact sheet, which may be of a hundred large photographs. Over 0, at most 3600."""
    stall_s: float = 60.0
    """Silence of the object store while a file is fetched or put. Over 0, at most 3600."""

    def __post_init__(self) -> None:
        """Raise `InvalidRequest` for a value out of range."""
        for name, value in vars(self).items():
            _require(0 < value <= 3600, name, value, "over 0, at most 3600")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How the client goes on when a service is away. Pauses double from the first to the longest, spread at random."""

    attempts: int = 4
    """Times that a call is sent in all before `Unavailable` is raised. 1 to 5, which is the most that gRPC allows."""
    outage_s: float = 120.0
    """How long uploads, downloads and watches keep trying while nothing comes. 0 to 86,400; 0 means one try."""
    first_delay_s: float = 0.25
    """Pause before the second try. 0.01 to 60."""
    longest_delay_s: float = 5.0
    """Longest pause between tries; a service that asks for a longer one gets it. `first_delay_s` to 300."""

    def __post_init__(self) -> None:
        """Raise `InvalidRequest` for a value out of range."""
        _require(self.attempts in range(1, 6), "attempts", self.attempts, "1 to 5")
        _require(0 <= self.outage_s <= 86_400, "outage_s", self.outage_s, "0 to 86,400")
        _require(0.01 <= self.first_delay_s <= 60, "first_delay_s", self.first_delay_s, "0.01 to 60")
        longest = f"{self.first_delay_s:g} (first_delay_s) to 300"
        _require(self.first_delay_s <= self.longest_delay_s <= 300, "longest_delay_s", self.longest_delay_s, longest)


def _require(met: bool, name: str, value: float, bounds: str) -> None:
    if not met:
        text = f"{name} cannot be {value!r}"
        violation = FieldViolation(field=name, description=text)
        raise InvalidRequest(f"{text}.", reason="FIELD_INVALID", remedy=f"Use {bounds}.", violations=(violation,))
