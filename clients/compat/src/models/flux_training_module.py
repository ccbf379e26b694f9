"""`train_lora`: captioned pictures in, the address of a LoRA out; fluxsmith's services do the work.

from src.models import flux_training_module

s3_url = flux_training_module.train_lora(train_data=[{"image": "iVBOR...", "description": "a red bird"}], user_id=1)
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from fluxsmith import Client, FluxsmithError, JobWarning
from fluxsmith.errors import InvalidRequest, JobFailed
from src.models.errors import successor_of
from src.models.flux_training_dataset import FluxTrainingDataset, encode
from src.models.settings import Settings, read_settings


class FluxLoRATrainingModule:
    """Trains LoRAs with one client and one set of defaults.

    Without `client`, each call connects by FLUXSMITH_ENCODER, FLUXSMITH_TRAINER and FLUXSMITH_TENANT; without
    `settings`, each reads the environment. Threads may share it.
    """

    def __init__(self, *, client: Client | None = None, settings: Settings | None = None) -> None:
        self._client = client
        self._settings = settings

    def train_lora(
        self,
        train_data: Iterable[Mapping[str, str]],
        user_id: int | str,
        rank: int | None = None,
        alpha: float | None = None,
        learning_rate: float | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        *,
        trigger_word: str = "",
    ) -> str:
        """Train on the samples, wait, and return the `s3://` address of the LoRA, a safetensors file.

        A sample is {"image": base64, "description": caption}. `trigger_word` takes the place of `[trigger]` in
        captions, and is put before those that have neither. What is None is taken from the settings. The pictures
        are removed from the service once the job has ended. Raises `InvalidImageFormat`, `TextEncodingFailed` and
        `OutOfMemory`, and otherwise what `fluxsmith.Client` raises. What the trainer warns of, such as too few steps to
        learn a style, is a `UserWarning`. Breaking off the wait leaves the job running.
        """
        user = _as_text(user_id)
        samples = FluxTrainingDataset(train_data)
        settings = self._settings or read_settings()
        config = settings.train_config(
            rank=rank, alpha=alpha, learning_rate=learning_rate, epochs=epochs, batch_size=batch_size
        )
        with self._connected() as client:
            client.validate(config)  # before anything is uploaded
            settings.warn_of_differences(client)
            dataset = encode(samples, client, trigger_word=trigger_word)
            job = None
            try:
                job = client.submit(dataset, config, user_id=user)
                for event in job.watch():
                    if isinstance(event, JobWarning):
                        warnings.warn(f"{job.id}: {event.message}", stacklevel=2)
                return job.result().lora_uri
            except JobFailed as error:
                raise successor_of(error, client, dataset) from error
            finally:
                if job is None or job.snapshot.state.ended:  # one that goes on may need the pictures again
                    with suppress(FluxsmithError):
                        client.datasets.delete(dataset)

    @contextmanager
    def _connected(self) -> Iterator[Client]:
        if self._client:
            yield self._client
        else:
            with Client() as client:
                yield client


def _as_text(user_id: int | str) -> str:
    """Return the user as the trainer takes it; None as text would be a user whom all such calls share."""
    if isinstance(user_id, str):
        return user_id
    if isinstance(user_id, bool) or not hasattr(user_id, "__index__"):
        raise InvalidRequest(
            f"user_id is of type {type(user_id).__name__}.", reason="FIELD_INVALID", remedy="Give a number or text."
        )
    return str(user_id)


train_lora = FluxLoRATrainingModule().train_lora
