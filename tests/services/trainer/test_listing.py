"""A page of jobs fits into a message, however long their configurations are."""

from __future__ import annotations

from fluxsmith.v1 import trainer_pb2 as pb

from services.common.server import MAX_MESSAGE_BYTES
from services.trainer.servicer import fitting_page
from services.trainer.wire import job_message
from tests.services.trainer.test_wire import JOB


def test_page_ends_before_it_is_too_large_and_is_never_empty() -> None:
    long = pb.TrainingJob(display_name="x" * (MAX_MESSAGE_BYTES // 8))
    assert len(list(fitting_page([long] * 10))) == 3
    huge = pb.TrainingJob(display_name="x" * (MAX_MESSAGE_BYTES // 2 + 1))
    assert list(fitting_page([huge, huge])) == [huge]
    assert len(list(fitting_page([pb.TrainingJob(job_id="job-1")] * 1000))) == 1000


def test_files_of_a_job_are_no_part_of_a_listing() -> None:
    assert job_message(JOB).result.artifacts
    assert not job_message(JOB, with_artifacts=False).result.artifacts
