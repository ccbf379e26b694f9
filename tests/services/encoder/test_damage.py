"""Damaged records: whatever the disk does, the answer says what is wrong and what to do, and nothing else suffers."""

from __future__ import annotations

import asyncio

import pytest
from fluxsmith.v1 import encoder_pb2 as pb

from services.common.cache import dataset_prefix
from services.common.errors import ServiceError
from services.common.object_store import ObjectDamaged
from services.common.settings import ServiceSettings
from services.encoder.collection import Collector
from services.encoder.datasets import Datasets, sample_key
from services.encoder.encoding import DatasetEncoder
from services.encoder.models import ModelThread
from services.encoder.problems import Problem
from services.encoder.runs import EncodingRuns
from services.encoder.servicer import EncoderServicer
from services.encoder.settings import EncoderSettings
from tests.services.damage import damage
from tests.services.encoder.conftest import OPTIONS, AddSample, Desk
from tests.services.encoder.test_collection import AT_ONCE


class Call:
    """What a servicer needs to know of a call."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """The caller."""
        return [("fluxsmith-tenant", self.tenant)]


@pytest.fixture
def servicer(
    datasets: Datasets, encoder: DatasetEncoder, model_thread: ModelThread, service_settings: ServiceSettings
) -> EncoderServicer:
    """The encoder's RPCs, called directly."""
    return EncoderServicer(
        datasets=datasets,
        runs=EncodingRuns(datasets, encoder),
        encoder=encoder,
        models=model_thread,
        service=service_settings,
        settings=EncoderSettings(),
    )


def call(servicer: EncoderServicer, method: str, request: object, tenant: str) -> object:
    """The answer of one call."""
    return asyncio.run(getattr(servicer, method)(request, Call(tenant)))


def key_of(desk: Desk, name: str) -> str:
    """The key of a dataset's record."""
    return f"{dataset_prefix(desk.tenant, desk.dataset_id)}{name}"


@pytest.mark.parametrize("data", [b"", b"no json", b"{}", b"\xff\xfe"], ids=["empty", "text", "no fields", "no text"])
@pytest.mark.parametrize(
    "name", ["dataset.json", "revision.json", "outcome.json", "manifest.json", "encoding.json", "sample"]
)
def test_no_damaged_record_is_more_than_an_error_with_a_remedy(
    desk: Desk, add_sample: AddSample, servicer: EncoderServicer, name: str, data: bytes
) -> None:
    add_sample("a")
    desk.encode()
    name = f"samples/{sample_key('a')}.json" if name == "sample" else name
    if name == "encoding.json":
        desk.datasets.begin_encoding(desk.tenant, desk.dataset_id, OPTIONS)
    damage(desk.datasets.store, key_of(desk, name), data)
    one = desk.dataset_id
    for method, request in (
        ("GetDataset", pb.GetDatasetRequest(dataset_id=one, include_samples=True)),
        ("ListDatasets", pb.ListDatasetsRequest()),
        ("RenderContactSheet", pb.RenderContactSheetRequest(dataset_id=one)),
        ("EncodeDataset", pb.EncodeDatasetRequest(dataset_id=one)),
    ):
        try:
            assert call(servicer, method, request, desk.tenant)
        except ServiceError as error:
            assert error.remedy  # noqa: PT017 - an answer is as good
    desk.datasets.store.delete(key_of(desk, "encoding.json"))
    call(servicer, "DeleteDataset", pb.DeleteDatasetRequest(dataset_id=one), desk.tenant)
    assert not desk.datasets.store.exists(key_of(desk, "dataset.json"))


def test_dataset_whose_record_is_damaged_stands_in_the_list_and_can_be_deleted(
    desk: Desk, servicer: EncoderServicer
) -> None:
    damage(desk.datasets.store, key_of(desk, "dataset.json"))
    listed = call(servicer, "ListDatasets", pb.ListDatasetsRequest(), desk.tenant)
    assert isinstance(listed, pb.ListDatasetsResponse)
    assert [dataset.state for dataset in listed.datasets] == [pb.DATASET_STATE_FAILED]
    assert "Delete this dataset" in listed.datasets[0].failure_message


def test_damage_that_is_still_legible_is_found(desk: Desk, add_sample: AddSample) -> None:
    record = add_sample("a", "a red cat")
    key = key_of(desk, f"samples/{sample_key('a')}.json")
    damage(desk.datasets.store, key, record.model_dump_json().replace("red cat", "rad bat").encode())
    (problem,) = desk.encode().problems
    assert problem.problem is Problem.ORIGINAL_LOST
    add_sample("a", "a red cat")
    assert desk.encode().failure == ""


def test_lost_record_is_not_listed_so_that_a_client_sends_it_again(
    desk: Desk, add_sample: AddSample, servicer: EncoderServicer
) -> None:
    for name in ("a", "b"):
        add_sample(name)
    damage(desk.datasets.store, key_of(desk, f"samples/{sample_key('a')}.json"))
    request = pb.GetDatasetRequest(dataset_id=desk.dataset_id, include_samples=True)
    found = call(servicer, "GetDataset", request, desk.tenant)
    assert isinstance(found, pb.GetDatasetResponse)
    assert [sample.sample_name for sample in found.samples] == ["b"]


def test_dataset_in_disorder_does_not_keep_an_encoder_from_starting(
    desk: Desk, datasets: Datasets, encoder: DatasetEncoder
) -> None:
    datasets.begin_encoding(desk.tenant, desk.dataset_id, OPTIONS)
    datasets.store.delete(key_of(desk, "dataset.json"))
    runs = EncodingRuns(datasets, encoder)
    runs.take_up()
    assert runs.progress(desk.tenant, desk.dataset_id) is None


def test_damaged_manifest_costs_no_tensors(desk: Desk, add_sample: AddSample, datasets: Datasets) -> None:
    add_sample("a")
    desk.encode()
    manifest, pointer = desk.manifest, datasets.pointer(desk.tenant, desk.dataset_id)
    assert pointer
    damage(datasets.store, f"{desk.tenant}/manifests/{pointer.manifest_digest}.json")
    with pytest.raises(ObjectDamaged):
        Collector(datasets, grace=AT_ONCE, settle_s=0).sweep(desk.tenant)
    assert desk.encode().problems == ()
    assert desk.manifest == manifest


def test_stopped_sweep_takes_its_marker_with_it(desk: Desk, add_sample: AddSample, datasets: Datasets) -> None:
    add_sample("a")
    desk.encode()
    datasets.delete(desk.tenant, desk.dataset_id)
    collector = Collector(datasets, grace=AT_ONCE, settle_s=30)
    collector.stopping.set()
    with pytest.raises(ServiceError, match="interrupted"):
        collector.sweep(desk.tenant)
    assert not datasets.store.exists(f"{desk.tenant}/sweep.json")


def test_remains_of_a_deleted_dataset_are_collected(desk: Desk, add_sample: AddSample, datasets: Datasets) -> None:
    add_sample("a")
    datasets.store.delete(key_of(desk, "dataset.json"))
    Collector(datasets, grace=AT_ONCE, settle_s=0).sweep(desk.tenant)
    assert not list(datasets.store.keys(f"{desk.tenant}/datasets/"))


@pytest.mark.parametrize("method", ["GetDataset", "RenderContactSheet"])
def test_page_token_that_was_never_given_is_refused(
    desk: Desk, add_sample: AddSample, servicer: EncoderServicer, method: str
) -> None:
    add_sample("a")
    kind = pb.GetDatasetRequest if method == "GetDataset" else pb.RenderContactSheetRequest
    request = kind(dataset_id=desk.dataset_id, page_token="../x")
    if isinstance(request, pb.GetDatasetRequest):
        request.include_samples = True
    with pytest.raises(ServiceError, match="page_token"):
        call(servicer, method, request, desk.tenant)


@pytest.mark.parametrize("dataset_id", ["\0", "../x", "", "ds-none"])
def test_contact_sheet_of_no_dataset_is_not_found(servicer: EncoderServicer, tenant: str, dataset_id: str) -> None:
    with pytest.raises(ServiceError) as caught:
        call(servicer, "RenderContactSheet", pb.RenderContactSheetRequest(dataset_id=dataset_id), tenant)
    assert caught.value.reason == "DATASET_NOT_FOUND"


def test_watch_ends_when_samples_come_right_after_the_encoding(
    desk: Desk, add_sample: AddSample, servicer: EncoderServicer
) -> None:
    add_sample("a")
    desk.datasets.begin_encoding(desk.tenant, desk.dataset_id, OPTIONS)

    async def states() -> list[int]:
        seen: list[int] = []
        request = pb.WatchDatasetRequest(dataset_id=desk.dataset_id)
        async with asyncio.timeout(30):
            async for response in servicer.WatchDataset(request, Call(desk.tenant)):  # type: ignore[arg-type]
                seen.append(response.dataset.state)
                if len(seen) == 1:
                    desk.encode()
                    add_sample("b")
        return seen

    assert asyncio.run(states()) == [pb.DATASET_STATE_ENCODING, pb.DATASET_STATE_OPEN]
