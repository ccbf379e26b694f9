"""The options that say how images become training data, for every command that takes a folder of images.

Ranges are checked here too, since the encoder learns of them only once the images are uploaded.
"""

import re
from typing import Annotated

import typer
from fluxsmith_text import quoted

from fluxsmith._samples import trigger_word_fault
from fluxsmith.cli.completion import choices_of
from fluxsmith.cli.splicing import in_place_of
from fluxsmith.encoding import AlphaPolicy, EncodingOptions, LatentForm

_DATA = "Data"
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")

Resolution = Annotated[
    list[int] | None,
    typer.Option(
        min=64,
        max=2048,
        metavar="PX",
        rich_help_panel=_DATA,
        help="Side in px, a multiple of 16; up to 4 times for several. (default as the base model)",
    ),
]
BucketStep = Annotated[
    int | None,
    typer.Option(
        min=16,
        max=256,
        metavar="PX",
        rich_help_panel=_DATA,
        help="Crop sides to multiples of this. (default 16)",
    ),
]
Upscale = Annotated[bool, typer.Option("--upscale", rich_help_panel=_DATA, help="Enlarge images that are too small.")]
Flip = Annotated[bool, typer.Option("--flip", rich_help_panel=_DATA, help="Learn mirrored images too.")]
RandomCrops = Annotated[
    int | None,
    typer.Option(
        min=1, max=8, metavar="N", rich_help_panel=_DATA, help="Random crops an image. (default one at the centre)"
    ),
]
TriggerWord = Annotated[
    str,
    typer.Option(
        metavar="WORD", rich_help_panel=_DATA, help="In captions and previews: for \\[trigger], or before them."
    ),
]
Background = Annotated[
    str, typer.Option(metavar="#RRGGBB", rich_help_panel=_DATA, help="Behind transparent pixels. (default #ffffff)")
]
MaskAlpha = Annotated[
    bool,
    typer.Option(
        "--mask-alpha",
        rich_help_panel=_DATA,
        help="Leave transparent pixels out of the loss.",
    ),
]
Latents = Annotated[
    LatentForm | None,
    typer.Option(
        metavar="posterior|mean",
        autocompletion=choices_of(LatentForm),
        case_sensitive=False,
        rich_help_panel=_DATA,
        help="Draw latents afresh each step, or keep their mean, half the size. (default posterior)",
    ),
]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", rich_help_panel=_DATA, help="Leave bad images and captions out instead of failing."),
]
MaxBadShare = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        metavar="SHARE",
        rich_help_panel=_DATA,
        help="Fail when more than this share is bad; with --skip-bad. (default 1)",
    ),
]


def _read_data_options(  # noqa: PLR0913  # a command's options are its parameters
    *,
    resolution: Resolution = None,
    bucket_step: BucketStep = None,
    upscale: Upscale = False,
    flip: Flip = False,
    random_crops: RandomCrops = None,
    trigger_word: TriggerWord = "",
    background: Background = "",
    mask_alpha: MaskAlpha = False,
    latents: Latents = None,
    skip_bad: SkipBad = False,
    max_bad_share: MaxBadShare = None,
) -> EncodingOptions:
    """Return the options as one value, those that are not given unset; raises `BadParameter`."""
    sides_px = resolution or []
    _require(len(sides_px) <= 4, "--resolution", f"{len(sides_px)} are given; give 4 at most")
    for side_px in sides_px:
        _require(side_px % 16 == 0, "--resolution", f"{side_px} is not a multiple of 16")
    _require((bucket_step or 0) % 16 == 0, "--bucket-step", f"{bucket_step} is not a multiple of 16")
    fault = trigger_word_fault(trigger_word)
    _require(not fault, "--trigger-word", f"it {fault}")
    variants = max(1, len(sides_px)) * (random_crops or 1) * (2 if flip else 1)
    _require(variants <= 16, "--random-crops", f"with --flip and --resolution it gives {variants} variants; 16 at most")
    is_color = not background or _COLOR.fullmatch(background) is not None
    _require(is_color, "--background", f"{quoted(background)} is not of the form '#808080'")
    _require(max_bad_share is None or skip_bad, "--max-bad-share", "it needs --skip-bad")
    return EncodingOptions(
        resolution_px=sides_px[0] if len(sides_px) == 1 else None,
        resolutions_px=tuple(sides_px) if len(sides_px) > 1 else (),
        bucket_step_px=bucket_step,
        upscale=upscale or None,
        flip=flip or None,
        random_crops=random_crops,
        trigger_word=trigger_word,
        background_color=background,
        alpha_policy=AlphaPolicy.MASK if mask_alpha else None,
        latent_form=latents,
        skip_bad_samples=skip_bad or None,
        max_bad_share=max_bad_share,
    )


def _require(met: bool, option: str, problem: str) -> None:
    if not met:
        raise typer.BadParameter(problem, param_hint=f"'{option}'")


with_data_options = in_place_of("data", _read_data_options)
