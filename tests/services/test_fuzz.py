"""Ten thousand messages to all RPCs of a running pair of services: whatever comes is answered, and with a reason.

Seeds are fixed. FLUXSMITH_TEST_MESSAGES asks for more of them, FLUXSMITH_TEST_SEED for others.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import fluxsmith
import grpc
import pytest
import safetensors.torch
import torch
from fluxsmith.v1 import encoder_pb2 as pb
from fluxsmith_text import on_one_line

from services.common.cache import read_manifest
from services.common.logs import LineFormatter
from services.common.object_store import ObjectStore
from services.common.settings import ServiceSettings
from services.encoder import app as encoder
from services.encoder.settings import EncoderSettings
from services.in_process import ANY_PORT, FOR_EVER_S, _ServerThread, _worker
from services.stack import Stack
from services.trainer import app as trainer
from services.trainer.settings import TrainerSettings
from services.trainer.worker import work
from tests.rpcs import RPCS, Metadata, Rpc, reason_of
from tests.services.encoder.conftest import noise_png
from tests.services.fuzzing import Fuzzer

MESSAGES = int(os.environ.get("FLUXSMITH_TEST_MESSAGES", "10000"))
SEED = int(os.environ.get("FLUXSMITH_TEST_SEED", "13"))
AT_ONCE = 8
HANGS_S, STREAM_S = 60.0, 0.3
LEVEL_BYTES = 200e6
# These work for long, or make what others then read for long.
RARE = {"CreateDataset", "ListDatasets", "EncodeDataset", "RenderContactSheet", "WatchDataset", "WatchTrainingJob"}
CHANGING = {"DeleteDataset", "UploadSamples", "EncodeDataset", "DeleteTrainingJob", "CancelTrainingJob"}
CODE = grpc.StatusCode
REFUSALS = {
    CODE.INVALID_ARGUMENT,
    CODE.NOT_FOUND,
    CODE.ALREADY_EXISTS,
    CODE.FAILED_PRECONDITION,
    CODE.RESOURCE_EXHAUSTED,
}
LEFT = {CODE.CANCELLED, CODE.DEADLINE_EXCEEDED}  # streams of what has not ended, by this side
TENANT = "fuzzed"
TENANTS: Sequence[Metadata] = (
    *((("fluxsmith-tenant", TENANT),),) * 17,
    (("fluxsmith-tenant", "another"),),
    (("fluxsmith-tenant", "../../x"),),
    (("fluxsmith-tenant", TENANT), ("fluxsmith-tenant", "another")),
)


@dataclass
class Pair:
    """Where the two services are, and the living identifiers: of what stays, and of what may change or end."""

    addresses: dict[str, str]
    living: dict[str, list[str]] = field(default_factory=dict)
    expendable: dict[str, list[str]] = field(default_factory=dict)


@pytest.fixture
def pair(store_stack: Stack, service_settings: ServiceSettings, tmp_path: Path) -> Iterator[Pair]:
    """Encoder and trainer on flux-tiny, with datasets, and jobs of which one was trained; the worker has gone."""
    serve_encoder = partial(
        encoder.run,
        service_settings,
        EncoderSettings.model_construct(address=ANY_PORT, t5_precision="fp32"),
        store_stack.store_settings,
    )
    with ExitStack() as serving:
        encoder_address = serving.enter_context(_ServerThread("encoder", serve_encoder))
        settings = TrainerSettings.model_construct(
            address=ANY_PORT,
            encoder_address=encoder_address,
            database_url=f"sqlite:///{tmp_path / 'jobs.sqlite'}",
            workers=0,
            stall_s=FOR_EVER_S,
        )
        serve_trainer = partial(trainer.run, service_settings, settings, store_stack.store_settings)
        trainer_address = serving.enter_context(_ServerThread("trainer", serve_trainer))
        pair = Pair(addresses={"encoder": encoder_address, "trainer": trainer_address})
        worker = partial(work, service_settings, settings, store_stack.store_settings)
        with fluxsmith.Client(encoder=encoder_address, trainer=trainer_address, tenant=TENANT) as client:
            with _worker(worker):
                trained = train_one(client, tmp_path)
            give_life(pair, client, trained, ObjectStore(store_stack.store_settings))
        yield pair


def train_one(client: fluxsmith.Client, folder: Path) -> fluxsmith.TrainingJob:
    for number in range(3):
        (folder / f"{number}.png").write_bytes(noise_png(number))
        (folder / f"{number}.txt").write_text(f"noise {number}")
    dataset = client.datasets.create_from_folder(folder, options=fluxsmith.EncodingOptions(resolution_px=64))
    return client.train(dataset, user_id="ada", steps=2, rank=2, checkpoint_interval_steps=1).wait()


def give_life(pair: Pair, client: fluxsmith.Client, trained: fluxsmith.TrainingJob, store: ObjectStore) -> None:
    """Note what is there, and make more that may be ended."""
    queued = [client.train(trained.dataset_id, user_id="ada", steps=9).id for _ in range(30)]
    open_datasets = [client.datasets.create(name=f"open {number}").id for number in range(30)]
    manifest = read_manifest(store, TENANT, client.datasets.get(trained.dataset_id).manifest_digest)
    latents = store.put(f"{TENANT}/latents", safetensors.torch.save({"latents": torch.zeros(16, 8, 8)}))
    uris = [store.uri(cached.key) for cached in manifest.objects()][:3] + 3 * [store.uri(latents.key)]
    result = trained.result
    assert result
    pair.living = {
        "job_id": [trained.id, *queued[:3]],
        "dataset_id": [trained.dataset_id, *open_datasets[:3]],
        "held_out_dataset_id": [trained.dataset_id, ""],
        "latents_uris": [*uris, result.lora_uri],
        "warm_start_uri": [result.lora_uri, ""],
        "artifact_name": [artifact.artifact_name for artifact in result.artifacts],
        "user_id": ["ada", "bob", ""],
        "request_id": ["", "once", "twice"],
        "page_token": ["", trained.dataset_id, "0.png"],
        "content_digest": [result.lora_digest, "0" * 64],
        "captions": ["noise 0", "noise 1"],
        "trigger_word": ["", "sks"],
        "background_color": ["", "#808080"],
        "target_regex": ["", ".*attn.*"],
    }
    pair.expendable = {**pair.living, "job_id": queued[3:], "dataset_id": open_datasets[3:]}


@contextmanager
def noted_faults() -> Iterator[list[str]]:
    """What the services log with a traceback, or as an error."""
    found: list[str] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info or record.levelno >= logging.ERROR:
                found.append(LineFormatter().format(record))

    notes = Notes()
    logging.getLogger().addHandler(notes)
    try:
        yield found
    finally:
        logging.getLogger().removeHandler(notes)


def calls(pair: Pair) -> Iterator[tuple[Rpc, list[bytes], Metadata]]:
    """What is sent, in order."""
    lasting, changing = Fuzzer(SEED, pair.living), Fuzzer(SEED + 1, pair.expendable)
    weights = [1 if rpc.method.name in RARE else 4 for rpc in RPCS]
    image = noise_png(1)
    for _ in range(MESSAGES):
        (rpc,) = lasting.random.choices(RPCS, weights)
        fuzzer = changing if rpc.method.name in CHANGING else lasting
        if rpc.method.client_streaming:
            name = fuzzer.random.choice(("0.png", "new", "\x1b[2J"))
            digest = hashlib.sha256(image).hexdigest()
            header = pb.SampleHeader(sample_name=name, captions=["noise"], content_digest=digest, size_bytes=len(image))
            requests = fuzzer.upload(image, header)
        else:
            requests = [fuzzer.message_bytes(rpc.method.input_type)]
        yield rpc, requests, fuzzer.random.choice(TENANTS)


def outcome(
    channels: dict[str, grpc.Channel], rpc: Rpc, requests: list[bytes], metadata: Metadata
) -> tuple[Rpc, grpc.StatusCode, str, str]:
    """How a call ended: the RPC, its status, the reason and the message. Streams are left after a moment."""
    timeout_s = STREAM_S if rpc.method.server_streaming else HANGS_S
    call: Any = rpc.call(channels[rpc.service], requests, metadata, timeout_s=timeout_s)
    if rpc.method.server_streaming:
        try:
            for _ in call:
                pass
        except grpc.RpcError:
            pass
    code, reason = reason_of(call)
    return rpc, code, reason, call.details() or ""


def memory_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_whatever_comes_is_answered_with_a_reason(pair: Pair) -> None:
    ends: Counter[tuple[str, str]] = Counter()
    faults: list[str] = []
    with (
        noted_faults() as logged,
        ThreadPoolExecutor(AT_ONCE) as pool,
        grpc.insecure_channel(pair.addresses["encoder"]) as to_encoder,
        grpc.insecure_channel(pair.addresses["trainer"]) as to_trainer,
    ):
        send = partial(outcome, {"encoder": to_encoder, "trainer": to_trainer})
        sizes: list[int] = []
        for batch in batches(calls(pair), 500):
            for rpc, code, reason, message in pool.map(lambda call: send(*call), batch):
                ends[str(rpc), code.name] += 1
                left = rpc.method.server_streaming and code in LEFT
                if not (code is CODE.OK or left or (code in REFUSALS and reason)):
                    faults.append(f"{rpc}: {code.name} {reason} {message[:200]}")
                if message != on_one_line(message):
                    faults.append(f"{rpc}: control characters in {message[:200]!r}")
            sizes.append(memory_bytes())
        assert not faults, (len(faults), sorted(set(faults))[:20])
        assert not logged, (len(logged), logged[:5])
        for service, channel in (("encoder", to_encoder), ("trainer", to_trainer)):
            (capabilities,) = (one for one in RPCS if one.service == service and one.method.name == "GetCapabilities")
            assert reason_of(capabilities.call(channel, [b""], (), timeout_s=HANGS_S))[0] is CODE.OK
    assert {name for name, _ in ends} == set(map(str, RPCS))
    reached = {name for name, code in ends if code in ("OK", "CANCELLED", "DEADLINE_EXCEEDED")}
    reached |= {name for name, code in ends if (name, code) == ("trainer.CreateCheckpoint", "FAILED_PRECONDITION")}
    assert reached == set(map(str, RPCS)), set(map(str, RPCS)) - reached
    third = len(sizes) // 3
    assert max(sizes[-third:] or [0]) - max(sizes[: third + 1]) < LEVEL_BYTES, sizes


def batches(
    made: Iterator[tuple[Rpc, list[bytes], Metadata]], size: int
) -> Iterator[list[tuple[Rpc, list[bytes], Metadata]]]:
    """So many at a time, the last perhaps fewer."""
    batch = []
    for one in made:
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
