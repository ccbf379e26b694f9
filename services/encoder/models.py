"""The encoder's models as the service has them: loaded as its settings say, and run on one thread of their own."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import bitsandbytes
import diffusers
import tokenizers
import torch
import transformers

from services.common.base_check import BaseModelError, assumption
from services.common.base_model import base_folder, pick_device, pick_dtype
from services.common.cache import FORMAT_VERSION
from services.common.settings import ServiceSettings
from services.encoder.inference import IMAGE_PARTS, TEXT_PARTS, EncoderModels, Loaders
from services.encoder.loading import LoadChoices, load_tokenizers, loaders
from services.encoder.model_folder import PARTS, checked
from services.encoder.settings import EncoderSettings

log = logging.getLogger(__name__)

__all__ = ["EncoderModels", "ModelThread", "load_models"]

T = TypeVar("T")


class ModelThread:
    """The one thread that runs models, so that the event loop and the uploads never wait for one."""

    def __init__(self, models: EncoderModels) -> None:
        self.models = models
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="models")

    def submit(self, work: Callable[[EncoderModels], T]) -> Future[T]:
        """Queue `work(models)`; callers take turns in the order they ask."""
        return self._executor.submit(work, self.models)

    def run(self, work: Callable[[EncoderModels], T]) -> T:
        """Wait for `work(models)`. For threads, not for the event loop."""
        return self.submit(work).result()

    def close(self) -> None:
        """Finish what runs, drop what waits."""
        self._executor.shutdown(cancel_futures=True)


def load_models(service: ServiceSettings, encoder: EncoderSettings) -> EncoderModels:
    """Check VAE, CLIP, T5 and tokenizers, and load them, or with `models=one` let their first use load them.

    Nothing of the transformer is read but its configuration. Raises `BaseModelError` when a part is missing, broken or
    not FLUX.1's.
    """
    folder = base_folder(service, PARTS)
    if assumed := assumption(folder):
        log.warning(assumed)
    facts = checked(folder)
    clip_tokenizer, t5_tokenizer = load_tokenizers(folder, facts.vocabularies, encoder.t5_tokens)
    device = pick_device(service.device)
    choices = LoadChoices(
        device=device,
        dtype=pick_dtype(service.dtype, device),
        t5_precision=encoder.t5_precision,
        vae_tiling=encoder.vae_tiling,
    )
    load = loaders(folder, choices)
    load = Loaders(
        vae=_of_unchanged_files(folder / "vae", load.vae),
        clip=_of_unchanged_files(folder / "text_encoder", load.clip),
        t5=_of_unchanged_files(folder / "text_encoder_2", load.t5),
    )
    image_fingerprint, text_fingerprint = _fingerprints(folder, choices)
    models = EncoderModels(
        loaders=load,
        clip_tokenizer=clip_tokenizer,
        t5_tokenizer=t5_tokenizer,
        device=device,
        dtype=choices.dtype,
        latent_shift=facts.latent_shift,
        latent_scale=facts.latent_scale,
        default_resolution_px=facts.default_resolution_px,
        image_fingerprint=image_fingerprint,
        text_fingerprint=text_fingerprint,
        fingerprint=hashlib.sha256(
            f"{image_fingerprint} {text_fingerprint} t5 tokens {t5_tokenizer.tokens}".encode()
        ).hexdigest(),
        one_at_a_time=encoder.models == "one",
    )
    if not models.one_at_a_time:
        models.load(*IMAGE_PARTS, *TEXT_PARTS)
    return models


def _of_unchanged_files(part: Path, load: Callable[[], T]) -> Callable[[], T]:
    """Load a part only while its files are those that its fingerprint is taken of, however much later that is."""

    def signature() -> list[tuple[str, int, int]]:
        stats = [(path, path.stat()) for path in sorted(part.rglob("*")) if path.is_file()]
        return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]

    at_start = signature()

    def loaded() -> T:
        model = load()
        if signature() != at_start:
            raise BaseModelError(
                f"the files of {part.name} have changed since the encoder started",
                "Restart the encoder, so that what it caches is told apart from what it cached before.",
            )
        return model

    return loaded


def _fingerprints(folder: Path, choices: LoadChoices) -> tuple[str, str]:
    """For images and for captions, sha256 in hexadecimal over all that decides what is cached of them."""
    common = f"format {FORMAT_VERSION} device {choices.device.type} dtype {choices.dtype} {_versions(torch)}"
    image = f"{common} {_versions(diffusers)} tiling {choices.vae_tiling}"
    libraries = _versions(transformers, tokenizers, bitsandbytes)
    text = f"{common} {libraries} t5 {choices.t5_precision}"
    text_parts = [part for part in PARTS if part not in IMAGE_PARTS]
    return _digest(image, folder, IMAGE_PARTS), _digest(text, folder, text_parts)


def _digest(choices: str, folder: Path, parts: Iterable[str]) -> str:
    """sha256 over the choices and every file of the parts, wherever the folder lies; hidden files do not count."""
    digest = hashlib.sha256(choices.encode())
    paths = {path.relative_to(folder): path for part in parts for path in (folder / part).rglob("*") if path.is_file()}
    for name, path in sorted(paths.items()):
        if not any(step.startswith(".") for step in name.parts):
            with path.open("rb") as file:
                contents = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"\n{name.as_posix()} {contents}".encode())
    return digest.hexdigest()


def _versions(*libraries: ModuleType) -> str:
    return " ".join(f"{library.__name__} {library.__version__}" for library in libraries)
