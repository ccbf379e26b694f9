"""What the fields of a training configuration can be, so that one refusal tells all that is wrong.

The trainer has the last word; a test compares these ranges with the contract's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from types import MappingProxyType

from fluxsmith.choices import Optimizer

_MAX_PATTERNS = 100
_MAX_PATTERN_CHARACTERS = 200
_MAX_TEXT_CHARACTERS = 1000
_MAX_PROMPTS = 16
_MAX_PROMPT_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers from `low` to `high`, without either where it is open, and multiples of `step` only if given."""

    low: float
    high: float = inf
    low_open: bool = False
    high_open: bool = False
    step: int = 0

    def __contains__(self, number: float) -> bool:
        above = self.low < number if self.low_open else self.low <= number
        below = number < self.high if self.high_open else number <= self.high
        return above and below and not (self.step and number % self.step)

    def __str__(self) -> str:
        multiple = f"a multiple of {self.step}, " if self.step else ""
        if self.high == inf:
            return f"{multiple}over {self.low:g}"
        high = f"{self.high:.12g}"
        if self.low_open:
            return f"{multiple}over {self.low:g}, at most {high}"
        return f"{multiple}{self.low:g} to {'below ' if self.high_open else ''}{high}"


_SHARE = Range(low=0, high=1)
_DECAY = Range(low=0, high=1, high_open=True)
_SEED = Range(low=0, high=2**32 - 1)
_RANK = Range(low=1, high=512)
_SIDE_PX = Range(low=32, high=2048, step=16)
_LEARNING_RATE = Range(low=0, high=0.1, low_open=True)
_LEARNING_RATE_OF_PRODIGY = Range(low=0, high=10, low_open=True)

RANGES: Mapping[str, Range] = MappingProxyType(
    {
        "rank": _RANK,
        "alpha": Range(low=0, high=4096, low_open=True),
        "learning_rate": _LEARNING_RATE,
        "batch_size": Range(low=1, high=64),
        "steps": Range(low=1, high=100_000),
        "epochs": Range(low=1, high=10_000),
        "seed": _SEED,
        "warmup_steps": Range(low=0, high=10_000),
        "max_gradient_norm": Range(low=0, low_open=True),
        "caption_dropout": _SHARE,
        "validation_interval_steps": Range(low=1, high=100_000),
        "timesteps": Range(low=10, high=100_000),
        "sigma_mean": Range(low=-10, high=10),
        "sigma_std": Range(low=0, high=10, low_open=True),
        "sigma_shift": Range(low=0.01, high=100),
        "sigma_mode_scale": Range(low=-1, high=1.75),
        "sigma_beta_a": Range(low=0.1, high=50),
        "sigma_beta_b": Range(low=0.1, high=50),
        "sigma_min": Range(low=0, high=1, high_open=True),
        "sigma_max": Range(low=0, high=1, low_open=True),
        "huber_delta": Range(low=0, high=1, low_open=True),
        "unmasked_weight": _SHARE,
        "guidance_scale": Range(low=0, high=100),
        "guidance_scale_max": Range(low=0, high=100),
        "gradient_accumulation_steps": Range(low=1, high=1024),
        "ema_decay": _DECAY,
        "max_skipped_steps": Range(low=0, high=10_000),
        "weight_decay": Range(low=0, high=10),
        "beta1": _DECAY,
        "beta2": _DECAY,
        "schedule_cycles": Range(low=1, high=1000),
        "schedule_power": Range(low=0, high=10, low_open=True),
        "final_learning_rate_ratio": _SHARE,
        "lora_plus_ratio": Range(low=1, high=1000),
        "adapter_dropout": _DECAY,
        "lokr_factor": Range(low=2, high=1024),
        "held_out_share": Range(low=0, high=0.5),
        "early_stopping_patience": Range(low=0, high=10_000),
        "early_stopping_min_delta": Range(low=0, high=100),
        "preview_interval_steps": Range(low=1, high=100_000),
        "preview_seed": _SEED,
        "preview_sampling_steps": Range(low=1, high=200),
        "preview_guidance_scale": Range(low=0, high=100),
        "preview_height_px": _SIDE_PX,
        "preview_width_px": _SIDE_PX,
        "checkpoint_interval_steps": Range(low=1, high=100_000),
        "checkpoints_kept": Range(low=1, high=100),
        "checkpoint_keep_interval_steps": Range(low=0, high=100_000),
    }
)


def faults(values: Mapping[str, object]) -> dict[str, str]:
    """Return what is wrong with the values of a configuration, by field."""
    ranges = dict(RANGES)
    if str(values.get("optimizer")).upper() == Optimizer.PRODIGY:
        ranges["learning_rate"] = _LEARNING_RATE_OF_PRODIGY
    found = {}
    for name, value in values.items():
        if isinstance(value, int | float) and name in ranges and value not in ranges[name]:
            found[name] = f"{value} is out of range: {ranges[name]}"
        elif fault := _fault_of_several(name, value):
            found[name] = fault
    if values.get("steps") is not None and values.get("epochs") is not None:
        found["epochs"] = "steps and epochs exclude each other"
    return found


def excesses(values: Mapping[str, object]) -> dict[str, str]:
    """Return what is too long or too many in the values of a configuration, by field, whatever else they are.

    Reads no text and counts before it looks at any entry.
    """
    found = {}
    for name, value in values.items():
        if fault := _excess(name, value):
            found[name] = fault
    return found


def _excess(name: str, value: object) -> str:
    match name, value:
        case "target_regex" | "warm_start_uri", str():
            return _too_long("it", [value], _MAX_TEXT_CHARACTERS)
        case "rank_pattern", Mapping():
            return _too_many("patterns", len(value), _MAX_PATTERNS) or _too_long(
                "a pattern", value, _MAX_PATTERN_CHARACTERS
            )
        case "preview_prompts", Sequence() if not isinstance(value, str):
            return _too_many("prompts", len(value), _MAX_PROMPTS) or _too_long(
                "a prompt", value, _MAX_PROMPT_CHARACTERS
            )
    return ""


def _fault_of_several(name: str, value: object) -> str:
    """Return what is wrong with a value that is no number; empty when nothing is."""
    if name == "rank_pattern" and isinstance(value, Mapping) and not _excess(name, value):
        wrong = [f"{pattern} is {rank}; a rank is {_RANK}" for pattern, rank in value.items() if rank not in _RANK]
        return next(iter(wrong), "")
    return _excess(name, value)


def _too_long(what: str, texts: Iterable[object], most: int) -> str:
    longest = max((len(text) for text in texts if isinstance(text, str)), default=0)
    return f"{what} has {longest} characters; use {most} at most" if longest > most else ""


def _too_many(what: str, count: int, most: int) -> str:
    return f"{count} {what} are given; give {most} at most" if count > most else ""
