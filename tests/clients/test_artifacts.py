"""The files of a job: known at any time, newest of each name, fetched into a folder and never out of it."""

from pathlib import Path

import fluxsmith
import grpc
import pytest
from fluxsmith import Artifact
from fluxsmith.errors import DownloadFailed, InvalidRequest, NotFound
from fluxsmith.v1 import trainer_pb2

from tests.clients.recording import CONTENT, DIGEST, Recorder


def artifact(name: str, *, uri: str = "s3://b/k") -> trainer_pb2.ArtifactPublished:
    return trainer_pb2.ArtifactPublished(artifact_name=name, uri=uri, size_bytes=len(CONTENT), content_digest=DIGEST)


def made(recorder: Recorder, *names: str) -> None:
    """Let the job have made these files."""
    recorder.job.result.artifacts.extend(artifact(name) for name in names)


def test_files_of_an_ended_job_come_from_its_result(client: fluxsmith.Client, recorder: Recorder) -> None:
    made(recorder, "metrics.csv", "lora.safetensors")
    found = client.job("j").artifacts()
    assert [file.artifact_name for file in found] == ["lora.safetensors", "metrics.csv"]
    assert "WatchTrainingJob" not in recorder.names()


def test_files_of_a_running_job_come_from_its_events(client: fluxsmith.Client, recorder: Recorder) -> None:
    recorder.job.state = trainer_pb2.TRAINING_JOB_STATE_RUNNING
    recorder.happened(trainer_pb2.TrainingEvent(artifact_published=artifact("lora-best.safetensors", uri="s3://b/old")))
    preview = trainer_pb2.PreviewRendered(image=artifact("previews/0-1.png"))
    recorder.happened(trainer_pb2.TrainingEvent(preview_rendered=preview))
    recorder.happened(trainer_pb2.TrainingEvent(artifact_published=artifact("lora-best.safetensors", uri="s3://b/new")))
    recorder.happened(trainer_pb2.TrainingEvent())  # of a kind not known here
    found = client.job("j").artifacts()
    assert [(type(file), file.artifact_name, file.uri) for file in found] == [
        (Artifact, "lora-best.safetensors", "s3://b/new"),
        (Artifact, "previews/0-1.png", "s3://b/k"),
    ]


def test_files_are_those_so_far_without_a_wait_for_more(client: fluxsmith.Client, recorder: Recorder) -> None:
    recorder.job.state = trainer_pb2.TRAINING_JOB_STATE_RUNNING
    for name in ("metrics.csv", "later.csv"):
        recorder.happened(trainer_pb2.TrainingEvent(artifact_published=artifact(name)))
    recorder.job.last_sequence = 1
    assert [file.artifact_name for file in client.job("j").artifacts()] == ["metrics.csv"]


def test_loras_of_checkpoints_are_files_of_a_job_whatever_its_state(
    client: fluxsmith.Client, recorder: Recorder, tmp_path: Path
) -> None:
    name = "checkpoints/000003-1/lora.safetensors"
    recorder.checkpoints.append(trainer_pb2.Checkpoint(checkpoint_id="000003-1", step=3, lora=artifact(name)))
    made(recorder, "lora.safetensors", name)  # as a trainer tells it of a job that has succeeded
    assert [file.artifact_name for file in client.job("j").artifacts()] == [name, "lora.safetensors"]
    recorder.job.ClearField("result")
    recorder.job.state = trainer_pb2.TRAINING_JOB_STATE_RUNNING
    assert client.job("j").download_all(tmp_path) == [tmp_path / name]


def test_lora_of_a_checkpoint_that_goes_meanwhile_is_left_out(
    client: fluxsmith.Client, recorder: Recorder, tmp_path: Path
) -> None:
    name = "checkpoints/000003-1/lora.safetensors"
    recorder.checkpoints.append(trainer_pb2.Checkpoint(checkpoint_id="000003-1", step=3, lora=artifact(name)))
    made(recorder, "metrics.csv")
    job = client.job("j")
    recorder.refusals[trainer_pb2.CreateDownloadUrlRequest] = grpc.StatusCode.NOT_FOUND
    (tmp_path / "metrics.csv").write_bytes(CONTENT)
    with pytest.raises(NotFound):  # it is still there
        job.download_all(tmp_path)
    listed, job.artifacts = job.artifacts(), lambda: listed  # type: ignore[method-assign]
    recorder.checkpoints.clear()
    assert job.download_all(tmp_path) == [tmp_path / "metrics.csv"]


def test_job_that_has_just_begun_has_no_files(client: fluxsmith.Client, recorder: Recorder, tmp_path: Path) -> None:
    recorder.job.state = trainer_pb2.TRAINING_JOB_STATE_QUEUED
    job = client.job("j")
    assert job.artifacts() == []
    assert "WatchTrainingJob" not in recorder.names()
    assert job.download_all(tmp_path / "files") == []


def test_all_files_are_written_under_their_names(client: fluxsmith.Client, recorder: Recorder, tmp_path: Path) -> None:
    made(recorder, "lora.safetensors", "previews/0-1.png")
    written = client.job("j").download_all(tmp_path / "files")
    assert written == [tmp_path / "files/lora.safetensors", tmp_path / "files/previews/0-1.png"]
    assert [path.read_bytes() for path in written] == [CONTENT] * 2
    asked = recorder.asked(trainer_pb2.CreateDownloadUrlRequest)
    assert [request.artifact_name for request in asked] == ["lora.safetensors", "previews/0-1.png"]


def test_only_new_and_changed_files_are_fetched_again(
    client: fluxsmith.Client, recorder: Recorder, tmp_path: Path
) -> None:
    made(recorder, "changed.csv", "same.csv")
    (tmp_path / "same.csv").write_bytes(CONTENT)
    (tmp_path / "changed.csv").write_bytes(CONTENT[::-1])
    assert len(client.job("j").download_all(tmp_path)) == 2
    assert [request.artifact_name for request in recorder.asked(trainer_pb2.CreateDownloadUrlRequest)] == [
        "changed.csv"
    ]
    assert (tmp_path / "changed.csv").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a//x", "", "a\\x", "C:x", "./x"])
def test_name_that_leads_out_of_the_folder_is_refused(
    client: fluxsmith.Client, recorder: Recorder, tmp_path: Path, name: str
) -> None:
    made(recorder, name)
    with pytest.raises(DownloadFailed, match="not a name for a file") as caught:
        client.job("j").download_all(tmp_path / "files")
    assert caught.value.reason == "ARTIFACT_NAME_UNSAFE"
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made_is_told(client: fluxsmith.Client, recorder: Recorder, tmp_path: Path) -> None:
    made(recorder, "lora.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequest, match="cannot be made") as caught:
        client.job("j").download_all(tmp_path / "file")
    assert caught.value.reason == "TARGET_UNWRITABLE"
