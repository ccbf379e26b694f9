"""The event file, read back by TensorBoard itself."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from services.trainer.config import TrainConfig
from services.trainer.jobs import DatasetReference, Job, JobState, JobWarning, ValidationCompleted
from services.trainer.results.event_files import MOST_POINTS, EventFile
from tests.services.trainer.results.test_history import png_of, preview_of, steps_of

CONFIG = TrainConfig(rank=7, preview_prompts=("red apple", "# not a *heading*"), preview_interval_steps=10)
JOB = Job(
    dataset=DatasetReference(dataset_id="ds-1", manifest_digest="0" * 64),
    config=CONFIG,
    job_id="job-1",
    tenant="t",
    state=JobState.RUNNING,
    create_time_s=1000.0,
    start_time_s=1001.0,
    end_time_s=None,
    step=0,
    total_steps=100,
    attempt=1,
    epoch=1,
    failure=None,
    result=None,
    last_sequence=0,
)


def read_back(file: EventFile, folder: Path) -> EventAccumulator:
    """What TensorBoard finds."""
    name, data = file.content()
    (folder / name).write_bytes(data)
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


def text_of(found: EventAccumulator, tag: str) -> str:
    """The newest text of a tag."""
    value: bytes = found.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0]
    return value.decode()


def test_every_measurement_of_a_step_is_a_curve(tmp_path: Path) -> None:
    file = EventFile(JOB)
    file.add(steps_of(3.0, 2.0), time_s=1010.0)
    found = read_back(file, tmp_path)
    losses = found.Scalars("train/loss")
    assert [(point.step, point.value) for point in losses] == [(1, 3.0), (2, 2.0)]
    assert [point.value for point in found.Scalars("train/gradient_norm")] == [6.0, 4.0]
    assert found.Scalars("train/learning_rate")[0].value == pytest.approx(1e-4)
    assert found.Scalars("train/step_time_s")[0].value == 0.5


def test_points_lie_at_the_time_they_were_measured(tmp_path: Path) -> None:
    file = EventFile(JOB)
    file.add(steps_of(3.0, 2.0), time_s=1010.0)
    file.add(ValidationCompleted(step=2, loss=1.5, held_out_loss_zero=2.25), time_s=1012.0)
    found = read_back(file, tmp_path)
    assert [point.wall_time for point in found.Scalars("train/loss")] == [1009.5, 1010.0]
    assert [(p.step, p.value, p.wall_time) for p in found.Scalars("held_out/loss")] == [(2, 1.5, 1012.0)]
    assert [(p.step, p.value) for p in found.Scalars("held_out/loss_zero")] == [(2, 2.25)]


def test_previews_are_pictures_under_the_number_of_their_prompt(tmp_path: Path) -> None:
    file = EventFile(JOB)
    first, second = png_of(16), png_of(16, "blue")
    file.add(preview_of(0), png=first)
    file.add(preview_of(10, "# not a *heading*", number=1), png=second)
    found = read_back(file, tmp_path)
    (apple,), (heading,) = found.Images("previews/0"), found.Images("previews/1")
    assert (apple.step, apple.encoded_image_string, apple.width) == (0, first, 16)
    assert (heading.step, heading.encoded_image_string) == (10, second)


def test_prompts_are_told_as_they_were_shown(tmp_path: Path) -> None:
    file = EventFile(JOB)
    for number, prompt in enumerate(("ohwx, red apple", "ohwx, # not a *heading*")):
        file.add(preview_of(0, prompt, number=number), png=png_of(16))
    found = read_back(file, tmp_path)
    assert (len(found.Images("previews/0")), len(found.Images("previews/1"))) == (1, 1)
    assert text_of(found, "preview_prompts") == "    0: ohwx, red apple\n    1: ohwx, # not a *heading*"


def test_configuration_prompts_and_warnings_are_texts(tmp_path: Path) -> None:
    file = EventFile(JOB)
    file.add(JobWarning(reason="SHORT_RUN", message="few steps"))
    file.add(JobWarning(reason="OTHER", message="something"))
    found = read_back(file, tmp_path)
    assert "    rank: 7\n" in text_of(found, "config")
    assert text_of(found, "preview_prompts") == "    0: red apple\n    1: # not a *heading*"
    assert text_of(found, "warnings") == "    SHORT_RUN: few steps\n    OTHER: something"


def test_the_file_is_called_after_the_job_not_the_machine() -> None:
    name, data = EventFile(JOB).content()
    assert name == "events.out.tfevents.job-1"
    assert str(Path.cwd()).encode() not in data


def test_the_file_only_grows() -> None:
    file = EventFile(JOB)
    _, before = file.content()
    file.add(steps_of(1.0))
    _, after = file.content()
    assert after.startswith(before)
    assert len(after) > len(before)


def test_steps_done_again_after_a_resume_take_the_place_of_the_first(tmp_path: Path) -> None:
    file = EventFile(JOB)
    file.add(steps_of(1.0, 2.0, 3.0))
    file.add(steps_of(8.0, 9.0, first=2))
    losses = read_back(file, tmp_path).Scalars("train/loss")
    assert [(point.step, point.value) for point in losses] == [(1, 1.0), (2, 8.0), (3, 9.0)]


def test_a_long_run_is_thinned_but_its_skipped_steps_are_all_there(tmp_path: Path) -> None:
    file = EventFile(JOB)
    losses = [1.0] * 200
    losses[122] = math.nan
    total_steps = 10 * MOST_POINTS
    file.add(steps_of(*losses, total_steps=total_steps))
    file.add(steps_of(2.0, first=total_steps, total_steps=total_steps))
    steps = [point.step for point in read_back(file, tmp_path).Scalars("train/loss")]
    assert steps == [1, *range(10, 121, 10), 123, *range(130, 201, 10), total_steps]


def test_pictures_of_many_previews_are_thinned(tmp_path: Path) -> None:
    file = EventFile(JOB)
    file.add(steps_of(1.0, total_steps=4805))
    png = png_of(16)
    for step in (0, 10, 200, 210, 420, 4805):
        file.add(preview_of(step), png=png)
    found = read_back(file, tmp_path)
    assert [image.step for image in found.Images("previews/0")] == [0, 210, 420, 4805]
