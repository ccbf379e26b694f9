"""An encoder from its settings to its end: run by a process of its own, or by `services/in_process.py`."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from functools import partial

from fluxsmith.v1 import encoder_pb2, encoder_pb2_grpc

from services.common.object_store import ObjectStore
from services.common.server import OnServing, Until, serve, tell_nobody, told_to_stop
from services.common.settings import ServiceSettings, StoreSettings
from services.encoder.collection import Collector, CollectorThread
from services.encoder.datasets import Datasets
from services.encoder.encoding import DatasetEncoder
from services.encoder.models import ModelThread, load_models
from services.encoder.runs import EncodingRuns
from services.encoder.servicer import EncoderServicer
from services.encoder.settings import EncoderSettings

log = logging.getLogger(__name__)


def run(
    service: ServiceSettings,
    settings: EncoderSettings,
    store_settings: StoreSettings,
    *,
    until: Until | None = None,
    on_serving: OnServing = tell_nobody,
) -> None:
    """Load the models, take up what was left unfinished, serve until told to stop. Raises `ServiceError`.

    Without `until` a signal stops it, and the process ends within `settings.stop_grace_s` of that.
    """
    store = ObjectStore(store_settings)
    store.ensure_bucket()
    with ExitStack() as ending:  # the last first: what works goes before what it works with
        models = ModelThread(load_models(service, settings))
        ending.callback(models.close)
        datasets = Datasets(store)
        ending.callback(datasets.close)
        encoder = DatasetEncoder(datasets, models, settings)
        runs = EncodingRuns(datasets, encoder)
        ending.callback(runs.close)
        if count := runs.take_up():
            log.info("went on with %d unfinished encodings", count)
        servicer = EncoderServicer(
            datasets=datasets, runs=runs, encoder=encoder, models=models, service=service, settings=settings
        )
        ending.callback(servicer.close)
        collector = CollectorThread(
            Collector(datasets, grace=settings.grace), store, interval_s=settings.collect_interval_s
        )
        ending.callback(collector.close)
        collector.start()
        asyncio.run(
            serve(
                settings.address,
                encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name,
                lambda server: encoder_pb2_grpc.add_EncoderServiceServicer_to_server(servicer, server),
                on_stop=lambda: asyncio.to_thread(ending.close),
                until=until or partial(told_to_stop, settings.stop_grace_s),
                on_serving=on_serving,
            )
        )
