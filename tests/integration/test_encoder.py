"""The encoder as its users meet it: every format, every option, early jobs, and whatever goes wrong on the way."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from pathlib import Path

import fluxsmith
import numpy as np
import pillow_heif
import pytest
from fluxsmith import (
    CaptionedImage,
    Dataset,
    DatasetState,
    EncodingOptions,
    JobState,
    SampleProblemReason,
    StepsCompleted,
)
from PIL import Image

from services.common.cache import read_manifest
from services.common.object_store import ObjectStore
from services.ports import free_ports
from services.stack import Stack
from tests.integration.conftest import client_of, drawing, learnt, write_drawings

pillow_heif.register_heif_opener()  # so that Pillow writes it
SUFFIXES = {"JPEG": "jpg", "HEIF": "heic", "TIFF": "tif"}
FORMATS = {kind: SUFFIXES.get(kind, kind.lower()) for kind in ("PNG", "WEBP", "AVIF", "BMP", "GIF", *SUFFIXES)}


def write_formats(folder: Path) -> Path:
    """One picture of every format."""
    for number, (kind, suffix) in enumerate(FORMATS.items()):
        with Image.open(io.BytesIO(drawing(number, shade=200))) as picture:
            picture.save(folder / f"{kind}.{suffix}", kind)
        (folder / f"{kind}.txt").write_text(f"a circle in {kind}")
    return folder


def test_every_format_is_read(client: fluxsmith.Client, tmp_path: Path) -> None:
    dataset = client.datasets.create_from_folder(write_formats(tmp_path))
    assert (dataset.state, dataset.encoded_count, dataset.problem_count) == (DatasetState.READY, len(FORMATS), 0)


def test_every_option_arrives_and_is_told_again(client: fluxsmith.Client, drawings: Path) -> None:
    options = EncodingOptions(
        resolutions_px=(64, 80),
        flip=True,
        bucket_step_px=32,
        upscale=True,
        random_crops=2,
        crop_seed=3,
        latent_form=fluxsmith.LatentForm.MEAN,
        alpha_policy=fluxsmith.AlphaPolicy.MASK,
        background_color="#808080",
        trigger_word="sks",
        skip_bad_samples=True,
        max_bad_share=0.5,
    )
    dataset = client.datasets.create_from_folder(drawings, options=options)
    assert dataset.options == options
    assert client.datasets.get(dataset.id).options == options
    job = client.train(dataset, rank=2, steps=2, batch_size=4)
    assert job.wait(timeout_s=120).state is JobState.SUCCEEDED


def test_watching_tells_progress_speed_and_bytes(client: fluxsmith.Client, tmp_path: Path) -> None:
    dataset = client.datasets.create_from_folder(write_drawings(tmp_path, 40, shade=33), wait=False)
    seen = list(client.datasets.watch(dataset))
    progress = [one.progress for one in seen if one.progress]
    assert seen[-1].state is DatasetState.READY
    assert seen[-1].progress is None
    assert max(one.written_bytes for one in progress) > 10_000
    assert [one.done_count for one in progress] == sorted(one.done_count for one in progress)


def test_contact_sheet_shows_what_training_will_see(client: fluxsmith.Client, ready: str, tmp_path: Path) -> None:
    files = client.datasets.contact_sheet(ready, tmp_path / "sheet.png", samples_per_page=4)
    assert [file.name for file in files] == ["sheet.png", "sheet-2.png", "sheet-3.png"]
    for file in files:
        with Image.open(file) as sheet:
            assert sheet.format == "PNG"
            assert np.asarray(sheet.convert("L")).std() > 5  # something is drawn


def test_contact_sheet_needs_no_encoding_and_shows_bad_samples(client: fluxsmith.Client, tmp_path: Path) -> None:
    dataset = client.datasets.create(name="not encoded")
    (tmp_path / "text.png").write_bytes(b"no image")
    client.datasets.upload(dataset, [CaptionedImage(path=tmp_path / "text.png", captions=("a",), name="text")])
    (sheet,) = client.datasets.contact_sheet(dataset, tmp_path / "sheet.png", options=EncodingOptions(flip=True))
    assert sheet.stat().st_size > 500
    assert client.datasets.get(dataset.id).state is DatasetState.OPEN


def test_problems_stand_with_their_samples(client: fluxsmith.Client, tmp_path: Path) -> None:
    folder = write_drawings(tmp_path, 3, shade=44)
    (folder / "text.png").write_bytes(b"no image")
    (folder / "text.txt").write_text("a text")
    (folder / "circle-0.txt").write_text("circle " * 90 + "end")
    dataset = client.datasets.create_from_folder(folder, skip_bad_samples=True)
    samples = {sample.name: sample for sample in client.datasets.samples(dataset)}
    (bad,) = samples["text.png"].problems
    assert (bad.reason, bad.warning) == (SampleProblemReason.NOT_AN_IMAGE, False)
    warnings = samples["circle-0.png"].problems
    assert {warning.reason for warning in warnings} == {SampleProblemReason.CAPTION_TRUNCATED}
    assert all(warning.warning and "circle" in warning.message for warning in warnings)
    assert samples["circle-1.png"].problems == ()
    assert (dataset.encoded_count, dataset.problem_count) == (3, 1 + len(warnings))


def test_more_bad_samples_than_agreed_fail_the_encoding(client: fluxsmith.Client, tmp_path: Path) -> None:
    folder = write_drawings(tmp_path, 3, shade=45)
    (folder / "text.png").write_bytes(b"no image")
    (folder / "text.txt").write_text("a text")
    with pytest.raises(fluxsmith.errors.DatasetFailed, match="1 of 4 samples"):
        client.datasets.create_from_folder(folder, skip_bad_samples=True, max_bad_share=0.2)


def test_options_out_of_range_name_the_field(client: fluxsmith.Client, ready: str) -> None:
    with pytest.raises(fluxsmith.errors.InvalidRequest) as caught:
        client.datasets.encode(ready, background_color="white")
    assert "options.background_color" in caught.value.violations[0].field
    assert "#rrggbb" in caught.value.remedy


def upload_slowly_encoded(client: fluxsmith.Client, folder: Path, count: int = 60) -> Dataset:
    """A dataset whose encoding takes seconds; it is not begun yet."""
    dataset = client.datasets.create(name="slow")
    client.datasets.upload(dataset, fluxsmith.read_folder(write_drawings(folder, count, shade=len(folder.name))))
    return dataset


def test_early_job_makes_the_file_that_a_late_one_makes(client: fluxsmith.Client, tmp_path: Path) -> None:
    dataset = upload_slowly_encoded(client, tmp_path)
    client.datasets.encode(dataset, resolution_px=64, random_crops=8, flip=True)
    early = client.train(dataset, rank=2, steps=12, batch_size=3, start_while_encoding=True)
    still = client.datasets.get(dataset.id)
    assert still.state is DatasetState.ENCODING
    for event in early.watch():
        if isinstance(event, StepsCompleted):
            begun = client.datasets.get(dataset.id)
            break
    assert begun.state is DatasetState.ENCODING, "the first step came before the last sample"
    finished = early.wait(timeout_s=150)
    late = client.train(dataset, rank=2, steps=12, batch_size=3, start_while_encoding=True)
    assert learnt(early, tmp_path) == learnt(late, tmp_path)
    assert finished.start_while_encoding


def test_early_job_fails_with_its_dataset(client: fluxsmith.Client, tmp_path: Path) -> None:
    dataset = upload_slowly_encoded(client, tmp_path, 30)
    (tmp_path / "text.png").write_bytes(b"no image")
    client.datasets.upload(dataset, [CaptionedImage(path=tmp_path / "text.png", captions=("a",), name="text")])
    client.datasets.encode(dataset)
    job = client.train(dataset, rank=2, steps=500, start_while_encoding=True)
    failed = wait_for_end(job)
    assert failed.failure
    assert failed.failure.reason == "DATASET_FAILED"
    assert "'text'" in failed.failure.message


def wait_for_end(job: fluxsmith.JobHandle) -> fluxsmith.TrainingJob:
    """The job once it has ended, however it has."""
    for _ in job.watch():
        pass
    return job.refresh()


def test_early_job_needs_its_length_in_steps(client: fluxsmith.Client, ready: str) -> None:
    with pytest.raises(fluxsmith.errors.InvalidRequest, match="start_while_encoding"):
        client.train(ready, epochs=2, start_while_encoding=True)


def test_early_job_for_a_dataset_that_nobody_encodes_is_refused(client: fluxsmith.Client) -> None:
    dataset = client.datasets.create(name="empty")
    with pytest.raises(fluxsmith.errors.FailedPrecondition, match="is not encoded yet"):
        client.train(dataset, steps=1, start_while_encoding=True)


def test_job_goes_on_after_its_dataset_is_deleted(client: fluxsmith.Client, tmp_path: Path) -> None:
    dataset = client.datasets.create_from_folder(write_drawings(tmp_path, 4, shade=77))
    job = client.train(dataset, rank=2, steps=60)
    client.datasets.delete(dataset)
    assert job.wait(timeout_s=120).state is JobState.SUCCEEDED


def test_two_encoders_at_once_converge_also_when_one_is_killed(own_stack: Stack, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    other_address = f"127.0.0.1:{port}"
    start_other(own_stack, other_address)
    beside = fluxsmith.Client(encoder=other_address, trainer=own_stack.trainer_address)
    with client_of(own_stack) as client, beside as other:
        dataset = upload_slowly_encoded(client, tmp_path)
        threads = [threading.Thread(target=one.datasets.encode, args=(dataset,)) for one in (client, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for seen in other.datasets.watch(dataset):
            if seen.encoded_count > 3:
                own_stack.stop_process("encoder", signal_number=signal.SIGKILL)
                break
        finished = other.datasets.wait(dataset)
        assert (finished.state, finished.encoded_count, finished.problem_count) == (DatasetState.READY, 60, 0)
        assert other.train(dataset, rank=2, steps=4).wait(timeout_s=120).state is JobState.SUCCEEDED


def start_other(stack: Stack, address: str) -> None:
    """A second encoder on the same store."""
    first, first_address = stack.processes.pop("encoder"), stack.encoder_address
    stack.encoder_address = address
    stack.start_service("encoder", address)
    stack.wait_for_service("encoder", address)
    stack.processes["second encoder"] = stack.processes.pop("encoder")
    stack.processes["encoder"], stack.encoder_address = first, first_address


def test_encoder_killed_at_any_moment_gives_what_an_undisturbed_one_gives(own_stack: Stack, tmp_path: Path) -> None:
    """Kill after kill, at moments spread over the whole encoding; FLUXSMITH_TEST_KILLS asks for more of them."""
    kills = int(os.environ.get("FLUXSMITH_TEST_KILLS", "2"))
    options = EncodingOptions(resolution_px=64, flip=True)
    with client_of(own_stack) as client, client_of(own_stack, "undisturbed") as undisturbed:
        expected = undisturbed.datasets.create_from_folder(write_drawings(tmp_path, 60, shade=5), options=options)
        dataset = client.datasets.create_from_folder(tmp_path, options=options, wait=False)
        for number in range(kills):
            time.sleep(0.02 + 2.0 * (number * 0.618 % 1))  # from the first moment to well into the encoding
            own_stack.stop_process("encoder", signal_number=signal.SIGKILL)
            own_stack.start_service("encoder", own_stack.encoder_address)
            own_stack.wait_for_service("encoder", own_stack.encoder_address)
            if client.datasets.get(dataset.id).state is DatasetState.READY:
                own_stack_store(own_stack).delete_prefix("default/cache/")  # begin anew
                client.datasets.encode(dataset, options=options)
        finished = client.datasets.wait(dataset)
    assert (finished.encoded_count, finished.state) == (60, DatasetState.READY)
    assert same_manifest(own_stack_store(own_stack), finished.manifest_digest, expected.manifest_digest)


def own_stack_store(stack: Stack) -> ObjectStore:
    """The stack's object store."""
    return ObjectStore(stack.store_settings)


def same_manifest(store: ObjectStore, digest: str, expected: str) -> bool:
    """Whether two tenants' manifests list the same bytes in the same order, all of them sound."""
    found = read_manifest(store, "default", digest)
    for cached in found.objects():
        store.get(cached.key, digest=cached.digest)
    other = read_manifest(store, "undisturbed", expected)
    return found.model_dump_json().replace("default/cache", "undisturbed/cache") == other.model_dump_json()
