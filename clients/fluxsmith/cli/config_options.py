"""The options that say what a job computes: the most used by name, every other by `--set` or from a file."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from fluxsmith_text import quoted

from fluxsmith._ranges import faults
from fluxsmith.choices import AdapterType, LearningRateSchedule, Optimizer, SigmaSampling, TargetPreset
from fluxsmith.cli.completion import choices_of, complete_field
from fluxsmith.cli.fields import Layer, read_file, read_options, read_words
from fluxsmith.cli.splicing import in_place_of
from fluxsmith.training import TrainConfig

_RUN = "Training"
_ADAPTER = "Adapter"
MEASURING = "Measuring and previews"
_ALL = "All settings"
OF_MEMORY = frozenset({"batch_size", "optimizer", "ema_decay", "rank", "adapter_type", "targets"})
"""Options that change how much memory a job needs."""


def _option(
    *names: str, panel: str, metavar: str | None, text: str, complete: Callable[[str], list[str]] | None = None
) -> Any:
    return typer.Option(*names, rich_help_panel=panel, metavar=metavar, help=text, autocompletion=complete)


def _choice(default: StrEnum, *names: str, panel: str, text: str) -> Any:
    listed = ", ".join(choice.lower() for choice in type(default))
    return _option(
        *names,
        panel=panel,
        metavar="NAME",
        text=f"{text} {listed}. (default {default.lower()})",
        complete=choices_of(type(default)),
    )


# Texts, read as the words of --set are, so that one message tells all that is wrong with any of them.
Steps = Annotated[
    str | None,
    _option(panel=_RUN, metavar="N", text="Length in optimizer steps. (default by the pictures, 1,000 to 4,000 views)"),
]
Epochs = Annotated[
    str | None,
    _option(panel=_RUN, metavar="N", text="Length as times every image is seen, in place of --steps."),
]
BatchSize = Annotated[str | None, _option(panel=_RUN, metavar="N", text="Images a batch. (default 1)")]
Accumulate = Annotated[
    str | None, _option("--accumulate", panel=_RUN, metavar="N", text="Batches an optimizer step. (default 1)")
]
LearningRate = Annotated[
    str | None, _option(panel=_RUN, metavar="LR", text="Peak learning rate. (default 1e-4; with prodigy 1)")
]
Schedule = Annotated[
    str | None,
    _choice(LearningRateSchedule.CONSTANT, "--schedule", panel=_RUN, text="How it goes on after the warm-up:"),
]
WarmupSteps = Annotated[
    str | None, _option(panel=_RUN, metavar="N", text="Steps in which the learning rate rises. (default 0)")
]
Optimization = Annotated[str | None, _choice(Optimizer.ADAMW, "--optimizer", panel=_RUN, text="One of")]
Sampling = Annotated[
    str | None,
    _choice(SigmaSampling.LOGIT_NORMAL, "--sigma-sampling", panel=_RUN, text="How noise levels are drawn:"),
]
CaptionDropout = Annotated[
    str | None, _option(panel=_RUN, metavar="SHARE", text="Images learnt without their caption. (default 0)")
]
EmaDecay = Annotated[
    str | None,
    _option(panel=_RUN, metavar="DECAY", text="Publish a moving average of the steps, such as 0.99. (default none)"),
]
Seed = Annotated[str | None, _option(panel=_RUN, metavar="N", text="The same seed gives the same steps. (default 0)")]

Rank = Annotated[str | None, _option(panel=_ADAPTER, metavar="N", text="Rank of the LoRA. (default 16)")]
Alpha = Annotated[
    str | None, _option(panel=_ADAPTER, metavar="A", text="The LoRA is scaled by alpha / rank. (default 16)")
]
Adapter = Annotated[str | None, _choice(AdapterType.LORA, "--adapter-type", panel=_ADAPTER, text="One of")]
Targets = Annotated[
    str | None,
    _choice(TargetPreset.IMAGE_STREAM, "--targets", panel=_ADAPTER, text="Which layers are adapted:"),
]
Kohya = Annotated[
    bool | None,
    _option("--kohya/--no-kohya", panel=_ADAPTER, metavar=None, text="Also make a file for ComfyUI. (default yes)"),
]

HeldOutShare = Annotated[
    str | None,
    _option(
        panel=MEASURING,
        metavar="SHARE",
        text="Share of FOLDER to measure on, not to learn; up to 0.5. (default 0.1 from 20 images on)",
    ),
]
EarlyStop = Annotated[
    str | None,
    _option(
        "--early-stop",
        panel=MEASURING,
        metavar="N",
        text="End after N measurements in a row that were not better: 10 a run by default, set by "
        "validation_interval_steps.",
    ),
]
Preview = Annotated[
    list[str] | None,
    _option(
        "--preview",
        panel=MEASURING,
        metavar="PROMPT",
        text="Picture to make now and then; may be repeated. (default 2 of the captions)",
    ),
]
PreviewEvery = Annotated[
    str | None,
    _option("--preview-every", panel=MEASURING, metavar="N", text="Steps between previews. (default 4 times a run)"),
]

ConfigFile = Annotated[
    Path | None,
    _option("--config", panel=_ALL, metavar="FILE", text="TOML file of fields of TrainConfig; options win over it."),
]
Words = Annotated[
    list[str] | None,
    _option(
        "--set",
        panel=_ALL,
        metavar="FIELD=VALUE",
        complete=complete_field,
        text="Any field of TrainConfig, over --config; may be repeated.",
    ),
]


def _read_config(  # noqa: PLR0913  # a command's options are its parameters
    *,
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    gradient_accumulation_steps: Accumulate = None,
    learning_rate: LearningRate = None,
    learning_rate_schedule: Schedule = None,
    warmup_steps: WarmupSteps = None,
    optimizer: Optimization = None,
    sigma_sampling: Sampling = None,
    caption_dropout: CaptionDropout = None,
    ema_decay: EmaDecay = None,
    seed: Seed = None,
    rank: Rank = None,
    alpha: Alpha = None,
    adapter_type: Adapter = None,
    targets: Targets = None,
    kohya_file: Kohya = None,
    held_out_share: HeldOutShare = None,
    early_stopping_patience: EarlyStop = None,
    preview_prompts: Preview = None,
    preview_interval_steps: PreviewEvery = None,
    config: ConfigFile = None,
    words: Words = None,
) -> TrainConfig:
    """Return the options as one value, options before words before the file; raises `BadParameter`."""
    given = dict(locals())  # by names that are those of the fields, but for the last two
    del given["config"], given["words"]
    texts = {name: _texts(value) for name, value in given.items() if value is not None and value != []}
    options = read_options(texts, {name: _flag(name) for name in texts})
    return _combine([read_file(config) if config else Layer(), read_words(words or ()), options])


_OF_DATA = {"bucket_step_px": "--bucket-step", "trigger_word": "--trigger-word", "resolution_px": "--resolution"}
"""Options of the images that services name in what they say of jobs."""


def _texts(value: object) -> list[str]:
    """Return what was given for an option as --set would be given it."""
    if isinstance(value, list):
        return value
    return [("yes" if value else "no") if isinstance(value, bool) else str(value)]


def _combine(layers: Sequence[Layer]) -> TrainConfig:
    """Return the configuration in which later layers win; raises `BadParameter` for all that is wrong with any."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    found: list[tuple[str, str]] = []
    for layer in layers:
        if layer.values.keys() & {"steps", "epochs"}:  # two ways to say one thing
            values = {name: value for name, value in values.items() if name not in {"steps", "epochs"}}
        values |= layer.values
        origins |= layer.origins
        found += layer.faults
    found += [(origins[name], fault) for name, fault in (faults(values) | _wrong_address(values)).items()]
    if found:
        (first, fault), *others = found
        text = "; ".join([fault, *(f"{origin}: {other}" for origin, other in others)])
        raise typer.BadParameter(text, param_hint=f"'{first}'")
    return TrainConfig(**values)


def _wrong_address(values: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong with the address of a LoRA to begin with, by field."""
    uri = values.get("warm_start_uri")
    if not uri or "://" in uri:
        return {}
    return {"warm_start_uri": f"{quoted(uri)} is not an address; give a file to --warm-start"}


def option_for(field: str, value: str) -> str:
    """Return how the command line says that a field is to have a value."""
    named = field in inspect.signature(_read_config).parameters and field != "kohya_file"
    return f"{_flag(field)} {value.lower()}" if named else f"--set {field}={value.lower()}"


def with_options(text: str) -> str:
    """Return a text of a service with the option behind each field that has one: `batch_size (--batch-size)`."""
    fields = inspect.signature(_read_config).parameters.keys() - {"config", "words"}
    options = {field: _flag(field) for field in fields if "_" in field} | _OF_DATA
    return re.sub(r"\b[a-z]+(?:_[a-z]+)+\b", lambda found: _beside(found[0], options.get(found[0], "")), text)


def _beside(field: str, option: str) -> str:
    return f"{field} ({option})" if option else field


def _flag(field: str) -> str:
    """Return the option that stands for a field."""
    [_, option] = get_args(inspect.signature(_read_config).parameters[field].annotation)
    # Within an annotation, the first name that Option is given stands where its default would.
    return str(option.default) if isinstance(option.default, str) else f"--{field.replace('_', '-')}"


with_config_options = in_place_of("config", _read_config)
with_memory_options = in_place_of("config", _read_config, shown=OF_MEMORY | {"config", "words"})
"""The same options, so that those of a job can be given as they are; help shows those that change the memory."""
