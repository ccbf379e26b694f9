"""The options that say what a job computes: the most used by name, every other by `--set` or from a file."""

import inspect
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from fluxsmith.choices import AdapterType, LearningRateSchedule, Optimizer, SigmaSampling, TargetPreset
from fluxsmith.cli.fields import read_choice, read_file, read_words
from fluxsmith.cli.ranges import faults
from fluxsmith.cli.splicing import in_place_of
from fluxsmith.training import TrainConfig

_RUN = "Training"
_ADAPTER = "Adapter"
MEASURING = "Measuring and previews"
_ALL = "All settings"


def _option(*names: str, panel: str, metavar: str | None, text: str) -> Any:
    return typer.Option(*names, rich_help_panel=panel, metavar=metavar, help=text)


def _choice(default: StrEnum, *names: str, panel: str, text: str) -> Any:
    kind = type(default)

    def parse(given: str) -> StrEnum:
        try:
            return read_choice(kind, given)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    listed = ", ".join(choice.lower() for choice in kind)
    return typer.Option(
        *names,
        rich_help_panel=panel,
        metavar="NAME",
        parser=parse,
        help=f"{text} {listed}. (default {default.lower()})",
    )


Steps = Annotated[int | None, _option(panel=_RUN, metavar="N", text="Length in optimizer steps.")]
Epochs = Annotated[
    int | None,
    _option(panel=_RUN, metavar="N", text="Length as times every image is seen. (default 1, without --steps)"),
]
BatchSize = Annotated[int | None, _option(panel=_RUN, metavar="N", text="Images a batch. (default 1)")]
Accumulate = Annotated[
    int | None, _option("--accumulate", panel=_RUN, metavar="N", text="Batches an optimizer step. (default 1)")
]
LearningRate = Annotated[
    float | None, _option(panel=_RUN, metavar="LR", text="Peak learning rate. (default 1e-4; with prodigy 1)")
]
Schedule = Annotated[
    LearningRateSchedule | None,
    _choice(LearningRateSchedule.CONSTANT, "--schedule", panel=_RUN, text="How it goes on after the warm-up:"),
]
WarmupSteps = Annotated[
    int | None, _option(panel=_RUN, metavar="N", text="Steps in which the learning rate rises. (default 0)")
]
Optimization = Annotated[Optimizer | None, _choice(Optimizer.ADAMW, "--optimizer", panel=_RUN, text="One of")]
Sampling = Annotated[
    SigmaSampling | None,
    _choice(SigmaSampling.LOGIT_NORMAL, "--sigma-sampling", panel=_RUN, text="How noise levels are drawn:"),
]
CaptionDropout = Annotated[
    float | None, _option(panel=_RUN, metavar="SHARE", text="Images learnt without their caption. (default 0)")
]
EmaDecay = Annotated[
    float | None,
    _option(panel=_RUN, metavar="DECAY", text="Publish a moving average of the steps, such as 0.99. (default none)"),
]
Seed = Annotated[int | None, _option(panel=_RUN, metavar="N", text="The same seed gives the same steps. (default 0)")]

Rank = Annotated[int | None, _option(panel=_ADAPTER, metavar="N", text="Rank of the LoRA. (default 16)")]
Alpha = Annotated[
    float | None, _option(panel=_ADAPTER, metavar="A", text="The LoRA is scaled by alpha / rank. (default 16)")
]
Adapter = Annotated[AdapterType | None, _choice(AdapterType.LORA, "--adapter-type", panel=_ADAPTER, text="One of")]
Targets = Annotated[
    TargetPreset | None,
    _choice(TargetPreset.IMAGE_STREAM, "--targets", panel=_ADAPTER, text="Which layers are adapted:"),
]
Kohya = Annotated[
    bool | None,
    _option("--kohya/--no-kohya", panel=_ADAPTER, metavar=None, text="Also make a file for ComfyUI. (default yes)"),
]

HeldOutShare = Annotated[
    float | None,
    _option(panel=MEASURING, metavar="SHARE", text="Share of FOLDER to measure on, not to learn; up to 0.5."),
]
EarlyStop = Annotated[
    int | None,
    _option(
        "--early-stop", panel=MEASURING, metavar="N", text="End after N measurements in a row that were not better."
    ),
]
Preview = Annotated[
    list[str] | None,
    _option("--preview", panel=MEASURING, metavar="PROMPT", text="Picture to make now and then; may be repeated."),
]
PreviewEvery = Annotated[
    int | None,
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
    options = dict(locals())  # by names that are those of the fields, but for the last two
    del options["config"], options["words"]
    if preview_prompts:
        options["preview_prompts"] = tuple(preview_prompts)
    from_file = _read("--config", read_file, config) if config else {}
    from_words = _read("--set", read_words, words) if words else {}
    given = {name: value for name, value in options.items() if value is not None and value != []}
    return _combine({f"{config}: ": from_file, "--set ": from_words, "": given})


def _read(option: str, read: Callable[[Any], dict[str, object]], given: object) -> dict[str, object]:
    try:
        return read(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=f"'{option}'") from None


def _combine(layers: Mapping[str, Mapping[str, object]]) -> TrainConfig:
    """Return the configuration in which later layers win; their names say where a wrong value came from."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer, fields in layers.items():
        if fields.keys() & {"steps", "epochs"}:  # two ways to say one thing
            values = {name: value for name, value in values.items() if name not in {"steps", "epochs"}}
        values |= fields
        origins |= {name: f"{layer}{name}" if layer else _flag(name) for name in fields}
    if found := [(origins[name], fault) for name, fault in faults(values).items()]:
        (first, fault), *others = found
        text = "; ".join([fault, *(f"{origin}: {other}" for origin, other in others)])
        raise typer.BadParameter(text, param_hint=f"'{first}'")
    return TrainConfig(**values)


def _flag(field: str) -> str:
    """Return the option that stands for a field."""
    [_, option] = get_args(inspect.signature(_read_config).parameters[field].annotation)
    # Within an annotation, the first name that Option is given stands where its default would.
    return str(option.default) if isinstance(option.default, str) else f"--{field.replace('_', '-')}"


with_config_options = in_place_of("config", _read_config)
