"""Run the encoder: `python -m services.encoder`. Its settings are environment variables (`settings.py`)."""

from __future__ import annotations

import asyncio
import logging
import sys

from fluxsmith.v1 import encoder_pb2, encoder_pb2_grpc

from services.common.errors import ServiceError
from services.common.logs import hide_progress_bars, set_up_logging
from services.common.object_store import ObjectStore
from services.common.server import serve
from services.common.settings import ServiceSettings, StoreSettings, read_settings
from services.encoder.collection import Collector, CollectorThread
from services.encoder.datasets import Datasets
from services.encoder.encoding import DatasetEncoder
from services.encoder.models import ModelThread, load_models
from services.encoder.runs import EncodingRuns
from services.encoder.servicer import EncoderServicer
from services.encoder.settings import EncoderSettings

log = logging.getLogger("services.encoder")


def main() -> int:
    """Load the models, take up what was left unfinished, serve until told to stop."""
    try:
        service, settings = read_settings(ServiceSettings), read_settings(EncoderSettings)
        store_settings = read_settings(StoreSettings)
    except ServiceError as error:
        print(f"error: {error.line}", file=sys.stderr)  # noqa: T201 - the log is not set up yet
        return 1
    set_up_logging(service.log_level)
    hide_progress_bars()
    try:
        store = ObjectStore(store_settings)
        store.ensure_bucket()
        models = ModelThread(load_models(service, settings))
        datasets = Datasets(store)
        encoder = DatasetEncoder(datasets, models, settings)
        collector = CollectorThread(
            Collector(datasets, grace=settings.grace), store, interval_s=settings.collect_interval_s
        )
        runs = EncodingRuns(datasets, encoder)
        if count := runs.take_up():
            log.info("went on with %d unfinished encodings", count)
    except ServiceError as error:
        log.error(error.line)
        return 1
    servicer = EncoderServicer(
        datasets=datasets, runs=runs, encoder=encoder, models=models, service=service, settings=settings
    )
    collector.start()

    async def on_stop() -> None:
        await asyncio.to_thread(collector.close)
        await asyncio.to_thread(runs.close)
        models.close()

    try:
        asyncio.run(
            serve(
                settings.address,
                encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name,
                lambda server: encoder_pb2_grpc.add_EncoderServiceServicer_to_server(servicer, server),
                on_stop=on_stop,
            )
        )
    except ServiceError as error:
        log.error(error.line)
        runs.close()
        models.close()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
