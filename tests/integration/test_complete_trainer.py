"""Through the services, as a user has it: options, previews, files in both forms, warm starts, and clear refusals."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path

import fluxsmith
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import FluxPipeline
from fluxsmith import JobWarning, PreviewRendered, ValidationCompleted, errors
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from services.stack import Stack

PROMPT = "a circle of size 3"


@pytest.fixture(scope="module")
def job(client_of_module: fluxsmith.Client, ready: str) -> fluxsmith.JobHandle:
    """A finished job that used many options at once."""
    job = client_of_module.train(
        ready,
        name="every <option>",
        steps=8,
        batch_size=2,
        gradient_accumulation_steps=2,
        rank=4,
        alpha=8,
        learning_rate=5e-3,
        learning_rate_schedule=fluxsmith.LearningRateSchedule.COSINE,
        sigma_sampling=fluxsmith.SigmaSampling.STATIC_SHIFT,
        loss_function=fluxsmith.LossFunction.HUBER,
        ema_decay=0.5,
        held_out_share=0.3,
        validation_interval_steps=4,
        preview_prompts=[PROMPT],
        preview_interval_steps=8,
        preview_sampling_steps=4,
        file_dtype=fluxsmith.FileDtype.FP32,
    )
    job.wait(timeout_s=150)
    return job


@pytest.fixture(scope="module")
def client_of_module(stack: Stack):  # type: ignore[no-untyped-def]
    with fluxsmith.Client(encoder=stack.encoder_address, trainer=stack.trainer_address) as client:
        yield client


def test_previews_are_those_of_the_file_that_is_published(
    job: fluxsmith.JobHandle, base_model: Path, tmp_path: Path
) -> None:
    previews = [event for event in job.watch() if isinstance(event, PreviewRendered)]
    assert [(event.step, event.prompt) for event in previews] == [(0, PROMPT), (8, PROMPT)]
    job.download(tmp_path / "lora.safetensors")
    picture = job.download(tmp_path / "last.png", artifact_name=previews[-1].image.artifact_name)
    pipeline = FluxPipeline.from_pretrained(base_model, dtype=torch.float32)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    (again,) = pipeline(
        PROMPT,
        height=64,
        width=64,
        num_inference_steps=4,
        guidance_scale=3.5,
        max_sequence_length=pipeline.tokenizer_2.model_max_length,
        generator=torch.Generator("cpu").manual_seed(0),
    ).images
    with Image.open(picture) as rendered:
        apart = np.abs(np.asarray(rendered).astype(int) - np.asarray(again).astype(int))
    assert apart.mean() < 2  # the service's T5 has 8 bits, the pipeline's 32: see test_previews for equal ones


def test_kohya_form_comes_with_it(job: fluxsmith.JobHandle, tmp_path: Path) -> None:
    file = job.download(tmp_path / "kohya.safetensors", artifact_name="lora.kohya.safetensors")
    names = set(safetensors.torch.load_file(file))
    assert {
        f"lora_unet_double_blocks_0_img_attn_qkv.{part}" for part in ("lora_down.weight", "lora_up.weight")
    } <= names


@pytest.mark.parametrize("name", ["lora.safetensors", "lora.kohya.safetensors"])
def test_files_show_the_last_preview_and_the_name(job: fluxsmith.JobHandle, tmp_path: Path, name: str) -> None:
    file = job.download(tmp_path / "lora.safetensors", artifact_name=name)
    with safetensors.safe_open(file, "pt") as opened:
        header = opened.metadata()
    assert header["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert (header["ss_output_name"], header["ss_network_alpha"]) == ("every _option_", "4")


def test_job_of_a_type_that_few_programs_read_says_so_at_once(client: fluxsmith.Client, ready: str) -> None:
    job = client.train(ready, adapter_type=fluxsmith.AdapterType.DORA, steps=1)
    _, told = itertools.islice(job.watch(), 2)
    assert isinstance(told, JobWarning)
    assert told.reason == "FEW_READERS"
    job.wait(timeout_s=120)
    assert "lora.comfyui.safetensors" in {file.artifact_name for file in job.artifacts()}


def test_metrics_and_report_tell_the_run(job: fluxsmith.JobHandle, tmp_path: Path) -> None:
    table = job.download(tmp_path / "metrics.csv", artifact_name="metrics.csv").read_text()
    assert [row["step"] for row in csv.DictReader(io.StringIO(table))] == [str(step) for step in range(9)]
    report = job.download(tmp_path / "report.html", artifact_name="report.html").read_text()
    assert "every &lt;option&gt;" in report
    assert report.count("<img") >= 3  # two previews and the contact sheet
    events = f"events.out.tfevents.{job.id}"
    (tmp_path / "tb").mkdir()
    job.download(tmp_path / "tb" / events, artifact_name=events)
    read = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [point.step for point in read.Scalars("held_out/loss")] == [0, 4, 8]


def test_learning_rate_follows_its_schedule(job: fluxsmith.JobHandle) -> None:
    rates = [step.learning_rate for event in job.watch() for step in getattr(event, "steps", ())]
    assert rates[0] == pytest.approx(5e-3)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))


def test_result_names_its_files_and_its_best_step(job: fluxsmith.JobHandle) -> None:
    result = job.refresh().result
    assert result is not None
    losses = {event.step: event.loss for event in job.watch() if isinstance(event, ValidationCompleted)}
    assert result.held_out_loss_best == min(losses.values())
    assert losses[result.best_step or 0] == result.held_out_loss_best
    zeros = {event.held_out_loss_zero for event in job.watch() if isinstance(event, ValidationCompleted)}
    assert zeros == {result.held_out_loss_zero}
    assert result.held_out_loss_zero
    last = result.best_step == job.refresh().step
    assert result.best_artifact_name == ("lora.safetensors" if last else "lora-best.safetensors")
    assert {"lora.safetensors", "lora-best.safetensors", "report.html", "previews/000008-0.png"} <= {
        artifact.artifact_name for artifact in result.artifacts
    }
    assert result.memory_peak_bytes > 10**8


def test_a_local_file_is_put_into_the_store_and_begun_with(
    client: fluxsmith.Client, job: fluxsmith.JobHandle, ready: str, tmp_path: Path
) -> None:
    uri = client.upload_adapter(job.download(tmp_path / "begin.safetensors"))
    again = client.train(ready, held_out=ready, steps=1, rank=4, alpha=8, batch_size=4, warm_start_uri=uri)
    base = client.train(ready, held_out=ready, steps=1, rank=4, alpha=8, batch_size=4)
    begun, from_nothing = again.wait(timeout_s=120).result, base.wait(timeout_s=120).result
    assert begun is not None
    assert from_nothing is not None
    assert begun.held_out_loss_base != from_nothing.held_out_loss_base


@pytest.mark.parametrize(
    ("fields", "reason", "said"),
    [
        ({"target_regex": r"transformer_blocks\.0\.attn\.to_quer"}, "TARGET_MATCHES_NOTHING", "attn.to_q"),
        ({"target_regex": r"(x+x+)+y"}, "TARGET_MATCHES_NOTHING", "matches no layer"),
        ({"rank_pattern": {"no_such": 4}}, "TARGET_MATCHES_NOTHING", "no_such"),
        ({"early_stopping_patience": 2}, "FIELD_INVALID", "held_out_share"),
        ({"warm_start_uri": "s3://fluxsmith/another/jobs/x/lora.safetensors"}, "WARM_START_FORBIDDEN", "tenant"),
        ({"optimizer": "ADAFACTOR", "beta1": 0.5, "rank": 600}, "CONFIG_INVALID", "ADAFACTOR"),
    ],
    ids=str,
)
def test_what_cannot_run_is_refused_when_it_is_asked_for(
    client: fluxsmith.Client, ready: str, fields: dict[str, object], reason: str, said: str
) -> None:
    with pytest.raises(errors.InvalidRequest) as raised:
        client.train(ready, steps=1, **fields)  # type: ignore[arg-type]
    assert raised.value.reason == reason
    assert said in json.dumps([str(raised.value), raised.value.remedy])


def test_share_and_dataset_to_measure_on_exclude_each_other(client: fluxsmith.Client, ready: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="held_out_share"):
        client.train(ready, held_out=ready, steps=1, held_out_share=0.2)
