"""What callers hand over, checked before anything is sent: a wrong kind is told by its name and value."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path

from fluxsmith_text import quoted

from fluxsmith._folder import name_some
from fluxsmith._samples import EMPTY_CAPTION, LONG_CAPTION, MOST_NAME_CHARACTERS, name_fault, sample_faults
from fluxsmith.data import CaptionedImage, Dataset
from fluxsmith.errors import FieldViolation, InvalidRequest, InvalidSource
from fluxsmith.training import TrainConfig

_SHOWN_CHARACTERS = 80
MOST_USER_CHARACTERS = 64


def wrong(field: str, value: object, wanted: str) -> InvalidRequest:
    """Return the error for an argument of the wrong kind; `wanted` says what belongs there."""
    fault = FieldViolation(field=field, description=f"is {_shown(value)}, not {wanted}")
    return InvalidRequest(
        f"{field} {fault.description}.", reason="FIELD_INVALID", remedy=f"Use {wanted}.", violations=(fault,)
    )


def text_of(given: object, field: str, *, wanted: str = "text") -> str:
    """Return the text, or raise `InvalidRequest`."""
    if isinstance(given, str) and given.encode(errors="replace").decode() == given:
        return given
    raise wrong(field, given, wanted)


def name_of(given: object, field: str = "name", *, most: int = MOST_NAME_CHARACTERS) -> str:
    """Return a name for people, or raise `InvalidRequest` as the services would."""
    name = text_of(given, field)
    if fault := name_fault(name, most=most):
        violation = FieldViolation(field=field, description=fault)
        message, remedy = f"{field} {_shown(name)} {fault}.", f"Use 1 to {most} visible characters, or leave it empty."
        raise InvalidRequest(message, reason="FIELD_INVALID", remedy=remedy, violations=(violation,))
    return name


def user_id_of(given: object) -> str:
    """Return the identifier of a product's user as text; a product may count its users."""
    if type(given) is int:
        given = str(given)
    text_of(given, "user_id", wanted="text or a whole number")
    return name_of(given, "user_id", most=MOST_USER_CHARACTERS)


def dataset_id_of(given: object, field: str = "dataset") -> str:
    """Return the identifier of a dataset, which may be the dataset itself."""
    if isinstance(given, Dataset):
        return given.id
    if isinstance(given, str) and "/" in given:
        raise wrong(field, given, "the identifier of a dataset; `datasets.create_from_folder` makes one of a folder")
    return text_of(given, field, wanted="a Dataset or the identifier of one")


def path_of(given: object, field: str = "path") -> Path:
    """Return the path of a file or folder."""
    if isinstance(given, str | PathLike):
        return Path(given)
    raise wrong(field, given, "a path")


def whole_number_of(given: object, field: str, *, wanted: str = "a whole number from 0 to 2^31 - 1") -> int:
    """Return the number if it can travel at all; whether it is in range is the service's to say."""
    if type(given) is int and abs(given) < 2**31:
        return given
    raise wrong(field, given, wanted)


def sequence_of(given: object) -> int:
    """Return the number of an event, or 0 for before the first."""
    if type(given) is int and 0 <= given < 2**63:
        return given
    raise wrong("after_sequence", given, "a whole number from 0 to 2^63 - 1")


def seconds_of(given: object, field: str) -> float | None:
    """Return the time, or None for no limit."""
    if given is None or (isinstance(given, int | float) and not isinstance(given, bool) and given >= 0):
        return given
    raise wrong(field, given, "seconds of 0 or more, or None")


def images_of(given: object) -> list[CaptionedImage]:
    """Return the images as a list; raises `InvalidSource` that names all whose name or caption cannot be sent."""
    several = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)
    images: list[CaptionedImage] = []
    for image in given if several else [given]:  # type: ignore[attr-defined]
        if not isinstance(image, CaptionedImage):
            raise wrong("images", image, "a CaptionedImage each; `create_from` takes other kinds")
        images.append(image)
    faults = [(image.name, fault) for image in images for fault in sample_faults(image.name, image.captions)]
    if faults:
        raise InvalidSource(
            f"images cannot be sent: {name_some([f'{_shown(name)}: {fault}' for name, fault in faults])}.",
            reason=_reason_of([fault for _, fault in faults]),
            remedy="Correct these names and captions.",
        )
    return images


def _reason_of(faults: Sequence[str]) -> str:
    """Return the encoder's own reason where all faults are of one kind that it has too."""
    for beginning, reason in ((EMPTY_CAPTION, "CAPTION_EMPTY"), (LONG_CAPTION, "CAPTION_TOO_LONG")):
        if all(fault.startswith(beginning) for fault in faults):
            return reason
    return "SOURCE_INVALID"


def truth_of(given: object, field: str) -> bool:
    """Return the yes or no."""
    if isinstance(given, bool):
        return given
    raise wrong(field, given, "True or False")


def config_of(given: object) -> TrainConfig:
    """Return the configuration."""
    if isinstance(given, TrainConfig):
        return given
    raise wrong("config", given, "a TrainConfig")


def _shown(value: object) -> str:
    text = quoted(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
