"""What cannot run is refused when it is asked for: all of it in one answer, and whatever a stranger's expression is."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

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


def begun_with(
    admission: Admission, store: ObjectStore, tenant: str, tensors: dict[str, Tensor], **config: Any
) -> InvalidInput | None:
    """How a job that begins with a file of these tensors is refused when it is asked for; None when it is taken."""
    key = f"{tenant}/adapters/{'0' * 64}.safetensors"
    uri = store.uri(store.put(key, save(tensors)).key)
    try:
        admission.check_only(tenant, Asked(config=config | {"warm_start_uri": uri}))
    except InvalidInput as error:
        return error
    return None


def lora(rank: int, *names: str, outputs: int = 192) -> dict[str, Tensor]:
    """A LoRA with these layers of flux-tiny, by the names that a file has."""
    down = {f"{name}.lora_down.weight": torch.ones(rank, 192) for name in names}
    return down | {f"{name}.lora_up.weight": torch.ones(outputs, rank) for name in names}


Q = {"target_regex": r"transformer_blocks\.0\.attn\.to_q", "alpha": 1.0}
TO_Q, QKV = "transformer.transformer_blocks.0.attn.to_q", "lora_unet_double_blocks_0_img_attn_qkv"


@pytest.mark.parametrize(
    ("tensors", "config", "reason", "says"),
    [
        ({"x": torch.ones(1)}, {}, "WARM_START_UNREADABLE", "no adapter"),
        (lora(4, TO_Q), {"adapter_type": "LOKR"}, "WARM_START_MISMATCH", "of type LORA, not LOKR"),
        (lora(4, TO_Q), {"rank": 8}, "WARM_START_MISMATCH", "is (4, 192), the job's (8, 192)"),
        (lora(4, TO_Q), {"rank": 4, "targets": "ATTENTION", "target_regex": ""}, "WARM_START_MISMATCH", "lacks"),
        (lora(4, QKV, outputs=576), {"rank": 5}, "WARM_START_MISMATCH", "has rank 4"),
        (lora(4, "proj_out", outputs=64), {"rank": 4}, "WARM_START_MISMATCH", "has besides proj_out"),
        (lora(4, TO_Q, outputs=96), {"rank": 4}, "WARM_START_MISMATCH", "is (96, 4), the job's (192, 4)"),
    ],
)
def test_file_to_begin_with_is_refused_when_the_job_is_asked_for(
    admission: Admission,
    store: ObjectStore,
    tenant: str,
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    reason: str,
    says: str,
) -> None:
    refused = begun_with(admission, store, tenant, tensors, **Q | config)
    assert refused
    assert refused.reason == reason
    assert says in refused.message
    assert "rank 4: set" not in refused.remedy or config["rank"] != 4  # no remedy that is followed already


@pytest.mark.parametrize("tensors", [lora(4, TO_Q), lora(4, QKV, outputs=576)], ids=["alone", "fused"])
def test_file_that_fits_is_taken(
    admission: Admission, store: ObjectStore, tenant: str, tensors: dict[str, Tensor]
) -> None:
    assert begun_with(admission, store, tenant, tensors, **Q, rank=4) is None


def test_server_without_the_base_checks_what_it_can(job_store: JobStore, store: ObjectStore, tenant: str) -> None:
    service = ServiceSettings(base_model="/only/workers/have/it")
    admission = Admission(job_store, store, service, TrainerSettings())
    assert begun_with(admission, store, tenant, lora(4, TO_Q), rank=4, adapter_type="LORA") is None
    for config, says in (({"rank": 8}, "of rank 4, not 8"), ({"rank": 4, "adapter_type": "DORA"}, "of type LORA")):
        refused = begun_with(admission, store, tenant, lora(4, TO_Q), **config)
        assert refused
        assert says in refused.message


def test_wrong_rank_is_not_blamed_on_the_file_too(admission: Admission, store: ObjectStore, tenant: str) -> None:
    refused = begun_with(admission, store, tenant, lora(4, TO_Q), **Q, rank=0)
    assert refused
    assert [violation.field for violation in refused.violations] == ["config.rank"]


FIRST_REQUEST = """
import sys
from services.common.object_store import ObjectStore
from services.common.settings import ServiceSettings, StoreSettings
from services.trainer import app
from services.trainer.admission import Admission, Asked
from services.trainer.database.job_store import JobStore
from services.trainer.estimate.estimator import MemoryEstimator
from services.trainer.settings import TrainerSettings
service = ServiceSettings(base_model=sys.argv[1], device="cpu")
store = ObjectStore(StoreSettings(secret_key="none"))
admission = Admission(None, store, service, TrainerSettings())
admission.check("t", Asked(config={"target_regex": ".*to_q", "rank_pattern": {".*to_q": 4}}))
MemoryEstimator(service).estimate({"adapter_type": "LOKR"})
print(sorted({"diffusers", "peft", "transformers"} & set(sys.modules)))
"""


def test_no_request_makes_the_server_import_models(base_model: Path) -> None:
    command = [sys.executable, "-c", FIRST_REQUEST, str(base_model)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


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


def test_job_that_few_programs_read_says_so_from_its_first_moment(
    admission: Admission, job_store: JobStore, tenant: str, encoded: str
) -> None:
    told = {}
    for kind in ("DORA", "LORA"):
        asked = Asked(dataset_id=encoded, config={"adapter_type": kind})
        job = admission.create(tenant, asked, request_id=f"r-{kind}")
        assert admission.create(tenant, asked, request_id=f"r-{kind}") == job
        told[kind] = [stored.event for stored in job_store.events_after(job.job_id, 0)]
    assert [event.kind for event in told["DORA"]] == ["state_changed", "warning"]
    assert [event.kind for event in told["LORA"]] == ["state_changed"]
