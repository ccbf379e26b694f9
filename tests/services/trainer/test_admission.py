"""What cannot run is refused when it is asked for: all of it in one answer, and whatever a stranger's expression is."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from services.common.cache import manifest_key
from services.common.errors import AlreadyExists, InvalidInput, NotFound, QuotaExceeded
from services.common.object_store import ObjectStore
from services.common.settings import ServiceSettings
from services.trainer.admission import Admission, Asked
from services.trainer.database.job_store import JobStore
from services.trainer.jobs import Job
from services.trainer.settings import TrainerSettings
from tests.services.trainer.data.test_references import DATASET, point


@pytest.fixture
def admission(job_store: JobStore, store: ObjectStore, service_settings: ServiceSettings) -> Admission:
    return Admission(job_store, store, service_settings, TrainerSettings(max_user_jobs=2, max_tenant_jobs=3))


def violations(admission: Admission, tenant: str, asked: Asked) -> dict[str, str]:
    """Field and description of everything that is wrong."""
    with pytest.raises(InvalidInput) as caught:
        admission.check_only(tenant, asked)
    return {violation.field: violation.description for violation in caught.value.violations}


def test_all_that_is_wrong_is_told_at_once(admission: Admission, tenant: str) -> None:
    config = {"rank": 0, "epochs": 3, "beta1": 0.5, "optimizer": "ADAFACTOR", "early_stopping_patience": 2}
    config |= {"target_regex": "no_such", "rank_pattern": {"nor_this": 4}, "warm_start_uri": "s3://other/x"}
    found = violations(admission, tenant, Asked(config=config, start_while_encoding=True, priority=101))
    assert set(found) == {
        "priority",
        "config.rank",
        "config.beta1",
        "start_while_encoding",
        "config.early_stopping_patience",
        "config.target_regex",
        "config.rank_pattern",
        "config.warm_start_uri",
    }


def test_one_fault_keeps_its_own_reason(admission: Admission, tenant: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        admission.check_only(tenant, Asked(config={"target_regex": "transformer_blocks.0.attn.to_quer"}))
    assert caught.value.reason == "TARGET_MATCHES_NOTHING"
    assert "transformer_blocks.0.attn.to_q" in caught.value.message


def test_a_field_out_of_range_is_not_blamed_twice(admission: Admission, tenant: str) -> None:
    asked = Asked(config={"held_out_share": 0.9, "early_stopping_patience": 1})
    assert set(violations(admission, tenant, asked)) == {"config.held_out_share"}
    asked = Asked(config={"steps": 0}, start_while_encoding=True)
    assert set(violations(admission, tenant, asked)) == {"config.steps"}


@pytest.mark.parametrize(
    "pattern",
    ["(?:(?:ab){9999}b){9999}", "(x+x+)+y", "(?:" * 60 + "a" + "{1000})" * 60, "(" * 100 + ")" * 100, "(?aLu)x", "\\"],
)
def test_no_expression_takes_long_or_is_an_internal_error(admission: Admission, tenant: str, pattern: str) -> None:
    admission.check_only(tenant, Asked(config={"target_regex": ".*to_q"}))  # the names are known from here on
    begin_s = time.thread_time()
    for config in ({"target_regex": pattern}, {"rank_pattern": {pattern[:200]: 4}}):
        assert violations(admission, tenant, Asked(config=config))
    assert time.thread_time() - begin_s < 2


@pytest.mark.parametrize(
    "config",
    [
        {"rank_pattern": {"x" * 201: 4}},
        {"rank_pattern": {"a\x00": 4}},
        {"target_regex": "to\x07q"},
        {"preview_prompts": ("a\x00b",)},
        {"preview_prompts": ("p",) * 16, "steps": 100_000, "preview_interval_steps": 1},
    ],
    ids=str,
)
def test_what_later_parts_could_not_hold_is_refused(admission: Admission, tenant: str, config: dict[str, Any]) -> None:
    assert violations(admission, tenant, Asked(config=config))


def test_check_alone_queues_nothing_and_needs_no_dataset(
    admission: Admission, job_store: JobStore, tenant: str
) -> None:
    patient = {"early_stopping_patience": 1}
    admission.check_only(tenant, Asked(config=patient, held_out_to_come=True))
    assert set(violations(admission, tenant, Asked(config=patient))) == {"config.early_stopping_patience"}
    with pytest.raises(NotFound):
        admission.check_only(tenant, Asked(dataset_id="ds-" + "0" * 20))
    assert job_store.list(tenant, before=None, limit=10) == []


@pytest.fixture
def encoded(store: ObjectStore, tenant: str) -> str:
    """The identifier of a dataset that is READY."""
    point(store, tenant, DATASET)
    store.put(manifest_key(tenant, "0" * 64), b"")
    return DATASET


def holds(store: ObjectStore, tenant: str) -> set[str]:
    """The jobs for which something is held."""
    return {key.rpartition("/")[2] for key in store.keys(f"{tenant}/holds/")}


@pytest.mark.parametrize("priority", [-100, 100])
def test_priorities_at_the_ends_of_the_range_are_taken(
    admission: Admission, tenant: str, encoded: str, priority: int
) -> None:
    asked = Asked(dataset_id=encoded, priority=priority)
    assert admission.create(tenant, asked, request_id="").priority == priority


def test_same_request_with_another_priority_is_another(admission: Admission, tenant: str, encoded: str) -> None:
    job = admission.create(tenant, Asked(dataset_id=encoded, priority=1), request_id="r")
    assert admission.create(tenant, Asked(dataset_id=encoded, priority=1), request_id="r").job_id == job.job_id
    with pytest.raises(AlreadyExists):
        admission.create(tenant, Asked(dataset_id=encoded, priority=2), request_id="r")


def test_quotas_name_whose_they_are_and_leave_nothing_behind(
    admission: Admission, store: ObjectStore, tenant: str, encoded: str
) -> None:
    def create(user: str, request_id: str = "") -> Job:
        return admission.create(tenant, Asked(dataset_id=encoded, user_id=user), request_id=request_id)

    made = [create("ada", "r"), create("ada")]
    with pytest.raises(QuotaExceeded) as of_user:
        create("ada")
    assert (of_user.value.reason, of_user.value.subject) == ("USER_QUOTA", "user:ada")
    made.append(create("bob"))
    with pytest.raises(QuotaExceeded) as of_tenant:
        create("bob")
    assert (of_tenant.value.reason, of_tenant.value.subject) == ("TENANT_QUOTA", f"tenant:{tenant}")
    assert create("ada", "r").job_id == made[0].job_id
    assert holds(store, tenant) == {job.job_id for job in made}


def test_many_calls_at_once_with_one_request_id_make_one_job(
    admission: Admission, store: ObjectStore, tenant: str, encoded: str
) -> None:
    def create(_: int) -> str:
        return admission.create(tenant, Asked(dataset_id=encoded), request_id="r").job_id

    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(create, range(40)))
    assert len(made) == 1
    assert holds(store, tenant) == made
