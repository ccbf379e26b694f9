"""Run the trainer: `python -m services.trainer`. Its settings are environment variables (`settings.py`).

This process serves RPCs and keeps workers alive; it never touches CUDA itself.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from fluxsmith.v1 import trainer_pb2, trainer_pb2_grpc

from services.common.errors import ServiceError
from services.common.logs import set_up_logging
from services.common.object_store import ObjectStore
from services.common.server import serve
from services.common.settings import ServiceSettings, StoreSettings, read_settings
from services.trainer.database.job_store import JobStore
from services.trainer.housekeeping import Housekeeping
from services.trainer.servicer import TrainerServicer
from services.trainer.settings import TrainerSettings
from services.trainer.supervisor import Supervisor

log = logging.getLogger("services.trainer")


def main() -> int:
    """Start the workers, serve until told to stop, then let the workers put their jobs back."""
    try:
        service, settings = read_settings(ServiceSettings), read_settings(TrainerSettings)
        store_settings = read_settings(StoreSettings)
    except ServiceError as error:
        print(f"error: {error.line}", file=sys.stderr)  # noqa: T201 - the log is not set up yet
        return 1
    set_up_logging(service.log_level)
    try:
        objects = ObjectStore(store_settings)
        jobs = JobStore(settings.database_url)
        supervisor = Supervisor(settings.workers, silent_s=max(30.0, 4 * settings.lease_s))
    except ServiceError as error:
        log.error(error.line)
        return 1
    supervisor.start()
    housekeeping = Housekeeping(objects, jobs, settings)
    housekeeping.start()
    servicer = TrainerServicer(jobs=jobs, objects=objects, service=service, settings=settings)
    try:
        asyncio.run(
            serve(
                settings.address,
                trainer_pb2.DESCRIPTOR.services_by_name["TrainerService"].full_name,
                lambda server: trainer_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, server),
                on_stop=lambda: asyncio.to_thread(supervisor.close),
            )
        )
    except ServiceError as error:
        log.error(error.line)
        return 1
    finally:
        housekeeping.close()
        supervisor.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
