"""A trainer's server from its settings to its end: run by a process of its own, or by `services/in_process.py`."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from functools import partial

from fluxsmith.v1 import trainer_pb2, trainer_pb2_grpc

from services.common.base_model import known_transformer
from services.common.object_store import ObjectStore
from services.common.server import OnServing, Until, serve, tell_nobody, told_to_stop
from services.common.settings import ServiceSettings, StoreSettings
from services.trainer.database.job_store import JobStore
from services.trainer.housekeeping import Housekeeping
from services.trainer.servicer import TrainerServicer
from services.trainer.settings import TrainerSettings
from services.trainer.supervisor import Supervisor


def run(
    service: ServiceSettings,
    settings: TrainerSettings,
    store_settings: StoreSettings,
    *,
    own_process: bool = False,
    until: Until | None = None,
    on_serving: OnServing = tell_nobody,
) -> None:
    """Start the workers, serve until told to stop, then let the workers put their jobs back. Raises `ServiceError`.

    Without `until` a signal stops it, and the process ends within `settings.stop_grace_s` of that. In a process of its
    own it also keeps that small, which others in the process might notice.
    """
    known_transformer(service)  # a base of another class is refused here, not only by each worker
    objects = ObjectStore(store_settings)
    supervisor = Supervisor(settings.workers, silent_s=max(30.0, 4 * settings.lease_s))
    with ExitStack() as ending:
        jobs = JobStore(settings.database_url)
        ending.callback(jobs.close)
        supervisor.start()
        ending.callback(supervisor.close)
        housekeeping = Housekeeping(objects, jobs, settings, own_process=own_process)
        housekeeping.start()
        ending.callback(housekeeping.close)
        servicer = TrainerServicer(jobs=jobs, objects=objects, service=service, settings=settings)
        asyncio.run(
            serve(
                settings.address,
                trainer_pb2.DESCRIPTOR.services_by_name["TrainerService"].full_name,
                lambda server: trainer_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, server),
                on_stop=lambda: asyncio.to_thread(ending.close),
                until=until or partial(told_to_stop, settings.stop_grace_s),
                on_serving=on_serving,
            )
        )
