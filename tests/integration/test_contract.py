"""What an operator with grpcurl sees, and the calls that the client library does not make."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import safetensors.torch
import torch
from fluxsmith import read_folder
from fluxsmith._upload import UploadStream
from fluxsmith.v1 import encoder_pb2, encoder_pb2_grpc, trainer_pb2_grpc
from PIL import Image

from services.common.object_store import ObjectStore
from services.stack import Stack

GRPCURL = Path(sys.executable).with_name("grpcurl")


@pytest.fixture
def encoder(stack: Stack) -> Iterator[encoder_pb2_grpc.EncoderServiceStub]:
    with grpc.insecure_channel(stack.encoder_address) as channel:
        yield encoder_pb2_grpc.EncoderServiceStub(channel)


@pytest.fixture
def trainer(stack: Stack) -> Iterator[trainer_pb2_grpc.TrainerServiceStub]:
    with grpc.insecure_channel(stack.trainer_address) as channel:
        yield trainer_pb2_grpc.TrainerServiceStub(channel)


def grpcurl(*arguments: str) -> str:
    process = subprocess.run([GRPCURL, "-plaintext", *arguments], capture_output=True, text=True, check=False)
    return process.stdout + process.stderr


def test_grpcurl_finds_the_services_by_reflection(stack: Stack) -> None:
    assert "fluxsmith.v1.EncoderService" in grpcurl(stack.encoder_address, "list")
    assert "rpc WatchTrainingJob" in grpcurl(stack.trainer_address, "describe", "fluxsmith.v1.TrainerService")


def test_grpcurl_reads_health_for_each_service(stack: Stack) -> None:
    for service in ("", "fluxsmith.v1.TrainerService"):
        answer = grpcurl("-d", f'{{"service": "{service}"}}', stack.trainer_address, "grpc.health.v1.Health/Check")
        assert "SERVING" in answer


def test_a_repeated_create_makes_one_dataset(encoder: encoder_pb2_grpc.EncoderServiceStub) -> None:
    request = encoder_pb2.CreateDatasetRequest(request_id="once", display_name="a")
    assert encoder.CreateDataset(request).dataset == encoder.CreateDataset(request).dataset
    with pytest.raises(grpc.RpcError) as raised:
        encoder.CreateDataset(encoder_pb2.CreateDatasetRequest(request_id="once", display_name="b"))
    assert raised.value.code() is grpc.StatusCode.ALREADY_EXISTS


def test_samples_before_a_broken_stream_stay(encoder: encoder_pb2_grpc.EncoderServiceStub, drawings: Path) -> None:
    dataset_id = encoder.CreateDataset(encoder_pb2.CreateDatasetRequest()).dataset.dataset_id
    images = read_folder(drawings)[:2]

    def stream() -> Iterator[encoder_pb2.UploadSamplesRequest]:
        yield from UploadStream(dataset_id, images, on_sent=lambda: None, stop=threading.Event()).requests()
        yield encoder_pb2.UploadSamplesRequest(chunk=b"of nothing")

    with pytest.raises(grpc.RpcError) as raised:
        encoder.UploadSamples(stream())
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = encoder.GetDataset(encoder_pb2.GetDatasetRequest(dataset_id=dataset_id, include_samples=True))
    assert [sample.sample_name for sample in found.samples] == [image.name for image in images]


def test_prompts_are_encoded_once(encoder: encoder_pb2_grpc.EncoderServiceStub, stack: Stack) -> None:
    request = encoder_pb2.EncodePromptsRequest(captions=["a red circle", ""])
    first, second = encoder.EncodePrompts(request), encoder.EncodePrompts(request)
    assert first == second
    assert first.embeddings[0].content_digest != first.embeddings[1].content_digest
    store = ObjectStore(stack.store_settings)
    tensors = safetensors.torch.load(store.get(store.key_of(first.embeddings[0].uri) or ""))
    assert tensors["t5"].ndim == 2
    assert tensors["clip_pooled"].ndim == 1


def test_latents_become_pictures(encoder: encoder_pb2_grpc.EncoderServiceStub, stack: Stack) -> None:
    store = ObjectStore(stack.store_settings)
    stored = store.put("default/jobs/x/latents.safetensors", safetensors.torch.save({"latents": torch.zeros(16, 8, 6)}))
    response = encoder.DecodeLatents(encoder_pb2.DecodeLatentsRequest(latents_uris=[store.uri(stored.key)]))
    picture = Image.open(io.BytesIO(store.get(store.key_of(response.images[0].uri) or "")))
    assert picture.size == (48, 64)


def test_latents_of_another_tenant_are_not_found(encoder: encoder_pb2_grpc.EncoderServiceStub, stack: Stack) -> None:
    store = ObjectStore(stack.store_settings)
    stored = store.put("other/jobs/x/latents.safetensors", safetensors.torch.save({"latents": torch.zeros(16, 8, 8)}))
    with pytest.raises(grpc.RpcError) as raised:
        encoder.DecodeLatents(encoder_pb2.DecodeLatentsRequest(latents_uris=[store.uri(stored.key)]))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
