"""Looks whether this machine can run the services, with the settings of this environment, and says what to do.

    python -m services.doctor [--json] [--data DIR] [--encoder-port 7401] [--trainer-port 7402]

One line a check: OK, WARN or FAIL. Nothing is changed, but for an object that is written to the store and removed.
Ends with 1 when a check failed. `fluxsmith doctor` asks this, and looks at running services besides.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from textwrap import fill

import torch
from packaging.requirements import Requirement
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from services.common.base_check import assumption
from services.common.base_model import base_folder, is_folder, pick_device
from services.common.errors import NotReady, ServiceError
from services.common.logs import hide_progress_bars
from services.common.object_store import ObjectStore
from services.common.settings import ServiceSettings, StoreSettings, read_settings
from services.encoder.settings import EncoderSettings
from services.stack import ROOT, serves
from services.trainer.estimate.estimator import MemoryEstimator
from services.trainer.settings import TrainerSettings

PARTS = ("transformer", "scheduler", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
EXTRAS = ("encoder", "trainer", "server", "stack")
PROBE = "health/doctor"
TORCH_PAGE = "https://pytorch.org/get-started/locally"
LITTLE_DISK, NO_DISK = 20e9, 2e9
OK, WARN, FAIL = "OK", "WARN", "FAIL"


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was found. `remedy` says what to do, where there is something."""

    name: str
    state: str
    found: str
    remedy: str = ""


def checks(*, data: Path, ports: dict[str, int]) -> Iterator[Check]:
    """Look at everything, one after the other; none is stopped by another's failure."""
    looks: dict[str, Callable[[], Check]] = {
        "packages": packages,
        "settings": settings,
        "model": model,
        "gpu": gpu,
        "memory of machine": memory,
        "store": store,
        "database": database,
        "disk": partial(disk, data),
    }
    looks |= {f"port of {service}": partial(port, service, number) for service, number in ports.items()}
    for name, look in looks.items():
        try:
            yield look()
        except ServiceError as error:
            yield Check(name=name, state=FAIL, found=error.told, remedy=error.remedy)
        except Exception as error:  # noqa: BLE001  # a library's own word on a setting that nobody foresaw
            remedy = "See that the environment variables FLUXSMITH_... that it goes by are right."
            yield Check(name=name, state=FAIL, found=f"{type(error).__name__}: {error}", remedy=remedy)


def packages() -> Check:
    """Whether the packages of the services are there, in the versions that they were tested with."""
    wrong = [fault for line in requires("fluxsmith") or () if (fault := _fault(Requirement(line)))]
    if wrong:
        remedy = "Run `make setup` in the checkout."
        return Check(name="packages", state=FAIL, found="; ".join(sorted(set(wrong))), remedy=remedy)
    named = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "peft"))
    return Check(name="packages", state=OK, found=f"Python {sys.version.split()[0]}, {named}")


def settings() -> Check:
    """Whether all settings can be read, so that the services start."""
    for kind in (StoreSettings, ServiceSettings, EncoderSettings, TrainerSettings):
        read_settings(kind)
    return Check(name="settings", state=OK, found="all that are set can be read")


def model() -> Check:
    """Whether the base model is whole, as far as its folder tells; the encoder's parts as the encoder checks them."""
    settings = read_settings(ServiceSettings)
    if not is_folder(str(_model_folder(settings))) and settings.base_model_revision:
        found = f"{settings.base_model} is fetched from the hub when the services start"
        return Check(name="model", state=OK, found=found)
    folder = base_folder(_placed(settings), PARTS)
    size = sum(path.stat().st_size for path in folder.glob("*/*.safetensors") if path.is_file())
    if not size:
        remedy = "Fetch the model again; its files end in .safetensors (with git-lfs: git lfs pull)."
        return Check(name="model", state=FAIL, found=f"{folder} holds no weights", remedy=remedy)
    _check_encoder_parts(folder)
    found = f"{folder}, {size / 1e9:.2f} GB of weights"
    if assumed := assumption(folder):
        remedy = "Put the model_index.json that belongs to the model beside its parts."
        return Check(name="model", state=WARN, found=f"{found}; {assumed}", remedy=remedy)
    return Check(name="model", state=OK, found=found)


def _check_encoder_parts(folder: Path) -> None:
    """Raise `BaseModelError` for a VAE, CLIP or T5 with which the encoder would not start."""
    hide_progress_bars()
    # Only here: it imports diffusers and transformers, which takes five seconds.
    from services.encoder.model_folder import checked  # noqa: PLC0415

    checked(folder)


def gpu() -> Check:
    """Which device trains, and how much of its memory is free."""
    device = pick_device(read_settings(ServiceSettings).device)
    if device.type != "cuda":
        found = f"none in use; the services run on the {device.type}, which is enough for flux-tiny alone"
        remedy = f"For FLUX.1-dev an NVIDIA GPU is needed. {_cuda_remedy()}"
        return Check(name="gpu", state=WARN, found=found, remedy=remedy)
    if not torch.cuda.is_available():
        remedy = f"{_cuda_remedy()} Or unset FLUXSMITH_DEVICE."
        return Check(name="gpu", state=FAIL, found="FLUXSMITH_DEVICE is cuda, but torch finds none", remedy=remedy)
    free, total = torch.cuda.mem_get_info(device)
    found = f"{torch.cuda.get_device_name(device)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if free < total / 2:
        remedy = "See with nvidia-smi what holds the rest; fluxsmith's own workers do while they run."
        return Check(name="gpu", state=WARN, found=found, remedy=remedy)
    return Check(name="gpu", state=OK, found=found)


def _cuda_remedy() -> str:
    """What lets torch find a GPU that is there."""
    if torch.version.cuda:
        return f"This torch is built for CUDA {torch.version.cuda}: install a driver for it (nvidia-smi must work)."
    pip = Path(sys.executable).with_name("pip")
    release = version("torch").partition("+")[0]
    return (
        "This torch is built without CUDA. With a driver in place (nvidia-smi must work): "
        f"{pip} uninstall -y torch, then {pip} install torch=={release} with the index that {TORCH_PAGE} names for it."
    )


def memory() -> Check:
    """Whether a job with the default configuration fits the GPU; `fluxsmith doctor` asks the trainer besides."""
    settings = _placed(read_settings(ServiceSettings))
    try:
        estimate = MemoryEstimator(settings).estimate({})
    except NotReady:
        found = "what a job needs is not known, since the base model's sizes cannot be read"
        return Check(name="memory of machine", state=WARN, found=found, remedy="See what is said of the model.")
    needed = f"a job with the default settings at 1024 px should have {estimate.recommended_bytes / 1e9:.1f} GB"
    if pick_device(settings.device).type != "cuda" or not torch.cuda.is_available():
        return Check(name="memory of machine", state=OK, found=f"{needed} of main memory")
    _, total = torch.cuda.mem_get_info()
    if total >= estimate.recommended_bytes:
        return Check(name="memory of machine", state=OK, found=f"{needed}, and the GPU has {total / 1e9:.1f} GB")
    remedy = "To need less: " + "; ".join(saving.change for saving in estimate.savings[:3]) + "."
    return Check(
        name="memory of machine", state=WARN, found=f"{needed}; the GPU has {total / 1e9:.1f} GB", remedy=remedy
    )


def store() -> Check:
    """Whether the object store takes an object and gives it back."""
    settings = read_settings(StoreSettings)
    if "FLUXSMITH_STORE_ENDPOINT" not in os.environ:
        server = Path(sys.executable).with_name("weed")
        if server.is_file():
            return Check(name="store", state=OK, found="`fluxsmith up` starts its own; no other is named")
        remedy = "Run `make setup`, or name a store with FLUXSMITH_STORE_ENDPOINT."
        return Check(name="store", state=FAIL, found=f"none is named, and there is no {server} to start", remedy=remedy)
    objects = ObjectStore(settings)
    objects.ensure_bucket()
    written = objects.put(PROBE, b"doctor")
    read = objects.get(written.key)
    objects.delete(written.key)
    if read != b"doctor":
        remedy = "Look at the store's log and disk."
        return Check(name="store", state=FAIL, found=f"{settings.endpoint} gave back something else", remedy=remedy)
    return Check(name="store", state=OK, found=f"{settings.endpoint}, bucket {settings.bucket}")


def database() -> Check:
    """Whether the job database can be reached; its tables are the trainer's to make."""
    if "FLUXSMITH_TRAINER_DATABASE_URL" not in os.environ:
        found = "`fluxsmith up` keeps its own, SQLite; no other is named"
        return Check(name="database", state=OK, found=found)
    url = make_url(read_settings(TrainerSettings).database_url)
    shown = url.difference_update_query(["password", "sslpassword"]).render_as_string(hide_password=True)
    try:
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").parent.is_dir():
            raise OSError(f"there is no folder {Path(url.database or '').parent}")
        with create_engine(url).connect() as connection:
            connection.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError) as error:
        remedy = "Start the database, or correct FLUXSMITH_TRAINER_DATABASE_URL."
        found = f"{shown} cannot be reached: {str(error).splitlines()[0]}"
        return Check(name="database", state=FAIL, found=found, remedy=remedy)
    return Check(name="database", state=OK, found=shown)


def disk(data: Path) -> Check:
    """Whether there is room for cached tensors, checkpoints and results."""
    folder = next(place for place in (data, *data.parents) if place.exists())
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.0f} GB free at {folder}"
    if free >= LITTLE_DISK:
        return Check(name="disk", state=OK, found=found)
    remedy = "Make room, or put the data elsewhere with --data. A picture at 1024 px takes 5 MB with its caption."
    return Check(name="disk", state=WARN if free >= NO_DISK else FAIL, found=found, remedy=remedy)


def port(service: str, number: int) -> Check:
    """Whether a service can listen on its port, or does already."""
    name, address = f"port of {service}", f"127.0.0.1:{number}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError:
            if serves(address):
                return Check(name=name, state=OK, found=f"{address} is served")
            remedy = f"Stop the program that has it, or choose another: fluxsmith up --{service}-port."
            return Check(name=name, state=FAIL, found=f"{address} is taken by another program", remedy=remedy)
    return Check(name=name, state=OK, found=f"{address} is free")


def _fault(requirement: Requirement) -> str:
    """What is wrong with a package that the services need; empty when nothing is."""
    if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in EXTRAS):
        return ""
    if requirement.name == "fluxsmith":  # one extra named by another
        return ""
    try:
        have = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is missing"
    return (
        ""
        if requirement.specifier.contains(have, prereleases=True)
        else f"{requirement.name} is {have}, not {requirement.specifier}"
    )


def _model_folder(settings: ServiceSettings) -> Path:
    """The folder that the stack would use: without a setting the one in the checkout."""
    named = Path(settings.base_model)
    return named if "FLUXSMITH_BASE_MODEL" in os.environ else ROOT / named


def _placed(settings: ServiceSettings) -> ServiceSettings:
    return settings.model_copy(update={"base_model": str(_model_folder(settings))})


def _at_words(line: str) -> str:
    width = shutil.get_terminal_size().columns
    return fill(line, width, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder for everything that is kept")
    parser.add_argument("--encoder-port", type=int, default=7401)
    parser.add_argument("--trainer-port", type=int, default=7402)
    options = parser.parse_args(arguments)
    ports = {"encoder": options.encoder_port, "trainer": options.trainer_port}
    found = list(checks(data=options.data.resolve(), ports=ports))
    if options.json:
        sys.stdout.write(json.dumps([asdict(check) for check in found], indent=2) + "\n")
    else:
        lines = [
            " ".join(filter(None, [f"{each.state:<4}  {each.name}: {each.found}.", each.remedy])) for each in found
        ]
        if sys.stdout.isatty():
            lines = [_at_words(line) for line in lines]
        sys.stdout.write("\n".join(lines) + "\n")
    return 1 if any(check.state == FAIL for check in found) else 0


if __name__ == "__main__":
    sys.exit(main())
