"""The page about a job: complete, alone, and harmless whatever names and prompts say."""

from __future__ import annotations

import ast
import math
from html.parser import HTMLParser

import numpy as np
import pytest

from services.trainer.config import TrainConfig
from services.trainer.jobs import Artifact, Checkpoint, Fault, JobFailure, JobState, JobWarning, ValidationCompleted
from services.trainer.results.example import Sampling
from services.trainer.results.history import Activity, History
from services.trainer.results.report import render_report, settings_of
from tests.services.trainer.results.test_event_files import JOB
from tests.services.trainer.results.test_history import png_of, preview_of, steps_of

HOSTILE = "<script>alert(1)</script>\"'><img src=https://example.org/x onerror=alert(2)>"
DONE = JOB.model_copy(update={"state": JobState.SUCCEEDED, "display_name": "ink drawing", "end_time_s": 1061.0})
BEST = Artifact(artifact_name="lora-best.safetensors", uri="s3://b/b", size_bytes=1, content_digest="cd" * 32)
WARM = DONE.model_copy(update={"config": TrainConfig(warm_start_uri="s3://b/t/lora.safetensors")})
LORA = Artifact(artifact_name="lora.safetensors", uri="s3://b/k", size_bytes=1_288_624, content_digest="ab" * 32)


class Page(HTMLParser):
    """A page as a browser sees it: elements with their attributes, and the text in each kind of element."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._inside = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._inside, data))

    @property
    def text(self) -> str:
        """All that is read, with single spaces."""
        return " ".join(" ".join(data for tag, data in self.texts if tag != "style").split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def code(self) -> str:
        """The example of use."""
        return next(data for tag, data in self.texts if tag == "code" and "import torch" in data)


@pytest.fixture
def history() -> History:
    """A run with everything in it, of two prompts."""
    history = History()
    for event in (ValidationCompleted(step=0, loss=5.0, held_out_loss_zero=4.0), steps_of(3.0, 2.0, math.nan, 1.0)):
        history.add(event)
    history.add(ValidationCompleted(step=2, loss=2.0))
    history.add(ValidationCompleted(step=4, loss=2.5))
    for step in (0, 4):
        for prompt in ("red apple", "dog face"):
            history.add(preview_of(step, prompt), png=png_of(64))
    return history


def test_result_tells_the_best_step_before_the_last_and_what_predicting_nothing_costs(history: History) -> None:
    text = Page(render_report(DONE, history)).text
    best = "held-out loss, best step 5 → 2 base → step 2: 60% lower"
    last = "held-out loss, last step 2.5 step 4: 50% lower than base"
    assert f"{best} {last} held-out loss of predicting nothing 4 the best is 50% of it" in text
    assert "skipped steps 1" in text


def test_a_run_that_made_it_worse_says_so() -> None:
    history = History()
    history.add(ValidationCompleted(step=0, loss=2.0))
    history.add(ValidationCompleted(step=4, loss=3.0))
    text = Page(render_report(DONE, history)).text
    assert "held-out loss, last step 3 step 4: 50% higher than base" in text
    assert "the base model: training made it worse" in text


def test_hostile_texts_stay_texts(history: History) -> None:
    config = TrainConfig(preview_prompts=(HOSTILE,), target_regex="a<b>&c")
    failure = JobFailure(fault=Fault.USER, reason=HOSTILE, message=HOSTILE, remedy=HOSTILE)
    job = DONE.model_copy(update={"display_name": HOSTILE, "user_id": HOSTILE, "config": config, "failure": failure})
    history.add(preview_of(4, HOSTILE), png=png_of(16))
    history.add(JobWarning(reason=HOSTILE, message=HOSTILE))
    hostile_file = LORA.model_copy(update={"artifact_name": HOSTILE, "content_digest": HOSTILE})
    page = Page(render_report(job, history, artifacts=[hostile_file], sampling=Sampling(base=HOSTILE)))
    assert not page.all("script")
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert all((image["src"] or "").startswith("data:image/") for image in page.all("img"))
    assert page.text.count("<script>alert(1)</script>") >= 10
    assert HOSTILE in [attributes.get("title") for attributes in page.all("div")]


def test_the_page_asks_for_nothing_outside_itself(history: History) -> None:
    page = Page(render_report(DONE, history, contact_sheet_png=png_of(300), artifacts=[LORA]))
    pictures = [attributes["src"] or "" for _, attributes in page.elements if "src" in attributes]
    assert len(pictures) == 5
    assert all(address.startswith("data:image/") for address in pictures)
    assert {tag for tag, attributes in page.elements if "href" in attributes} == {"a"}
    assert not page.all("link")
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv"))
    assert policy
    assert policy.startswith("default-src 'none'; img-src data:")


def test_the_first_figure_is_one_that_was_measured() -> None:
    history = History()
    history.add(steps_of(*np.linspace(4.0, 1.0, 100)))
    page = Page(render_report(DONE, history))
    assert next(data for tag, data in page.texts if tag == "dt") == "training loss"
    first, last = 4.0 - 3 * 9.5 / 99, 1.0 + 3 * 9.5 / 99
    assert f"{first:.4g} → {last:.4g} mean of the first and the last 20 steps" in page.text
    assert page.text.index("steps 100") < page.text.index("held-out loss not measured")
    history.add(ValidationCompleted(step=100, loss=2.0))
    measured = Page(render_report(DONE, history))
    assert next(data for tag, data in measured.texts if tag == "dt") == "held-out loss, best step"


def test_a_failure_and_its_remedy_come_first(history: History) -> None:
    failure = JobFailure(fault=Fault.USER, reason="NON_FINITE_LOSS", message="it diverged", remedy="Lower the rate.")
    failed = DONE.model_copy(update={"state": JobState.FAILED, "failure": failure})
    text = Page(render_report(failed, History())).text
    assert "It failed before its first step: NON_FINITE_LOSS it diverged What to do: Lower the rate." in text
    assert text.index("What to do:") < text.index("How far it came")
    assert "Result" not in text
    assert "It failed after step 4 of 100: NON_FINITE_LOSS" in Page(render_report(failed, history)).text


def test_a_job_of_which_nothing_is_known_has_a_page() -> None:
    text = Page(render_report(JOB, History())).text
    assert "job-1 running" in text
    assert "Result" not in text
    assert "How far it came steps 0 held-out loss not measured no held-out data" in text
    assert "No step was done." in text
    assert "Previews" not in text
    assert "There is no contact sheet" in text


def test_previews_are_a_row_a_prompt_and_a_column_a_step(history: History) -> None:
    page = Page(render_report(DONE, history))
    assert [image["alt"] for image in page.all("img")] == [
        "red apple, by the base model",
        "red apple, after step 4",
        "dog face, by the base model",
        "dog face, after step 4",
    ]
    assert all(image.get("class") == "pixelated" for image in page.all("img"))


def test_large_previews_are_small_files_and_not_pixelated() -> None:
    history = History()
    history.add(preview_of(0), png=png_of(1024))
    data = render_report(DONE, history)
    assert Page(data).all("img")[0].get("class") is None
    assert len(data) < 100_000


def test_of_many_previews_six_columns_are_shown() -> None:
    history = History()
    for step in range(20):
        history.add(preview_of(step), png=png_of(16))
    steps = [str(image["alt"]).rpartition(" ")[2] for image in Page(render_report(DONE, history)).all("img")]
    assert steps == ["model", "4", "8", "11", "15", "19"]


def test_the_preview_nearest_to_the_best_step_has_a_column() -> None:
    history = History()
    history.add(ValidationCompleted(step=129, loss=1.0))
    for step in range(0, 200, 10):
        history.add(preview_of(step), png=png_of(16))
    steps = [str(image["alt"]).rpartition(" ")[2] for image in Page(render_report(DONE, history)).all("img")]
    assert steps == ["model", "40", "80", "130", "150", "190"]


def test_every_setting_is_there_and_the_chosen_ones_first(history: History) -> None:
    text = Page(render_report(DONE, history)).text
    places = [text.index(f" {name} ", text.index("Settings")) for name in TrainConfig.model_fields]
    assert len(places) > 60
    chosen = {setting.name for setting in settings_of(JOB.config) if setting.changed}
    assert chosen == {"rank", "preview_prompts", "preview_interval_steps"}
    rest = text.index(f"{len(places) - 3} more, as by default")
    assert {name for name, place in zip(TrainConfig.model_fields, places, strict=True) if place < rest} == chosen


def test_every_setting_has_its_meaning() -> None:
    meanings = {setting.name: setting.meaning for setting in settings_of(TrainConfig())}
    assert meanings["rank"] == "Rank of the LoRA matrices."
    assert all(meanings.values())


def test_meanings_are_worded_as_the_page_shows_values(history: History) -> None:
    page = Page(render_report(DONE, history))
    assert not [data for tag, data in page.texts if tag != "style" and ("`" in data or "None means" in data)]
    assert ("code", "epochs") in page.texts
    assert "Optimizer steps; not set means that" in page.text
    assert "Steps between previews. Not set means 4 times a run." in page.text


def test_skipped_steps_are_marked_in_the_curve(history: History) -> None:
    marks = [path for path in Page(render_report(DONE, history)).all("path") if path.get("class") == "mark"]
    assert [mark["d"] for mark in marks] == ["M75.0 95V100"] * 2  # in the loss and in the gradient norm


def test_files_and_times_are_listed(history: History) -> None:
    history.seconds[Activity.PREVIEWING] = 8.0
    history.note_memory(21_300_000_000)
    text = Page(render_report(DONE, history, artifacts=[LORA])).text
    assert f"lora.safetensors 1.29 MB {'ab' * 32}" in text
    assert "Time: 1 min 0 s in all anything else 50 s 83% making previews 8 s 13% training 2 s 3%" in text
    assert "memory at the peak 21.3 GB" in text


def test_checkpoints_that_stay_are_listed_with_step_and_link(history: History) -> None:
    def checkpoint(step: int, loss: float | None) -> Checkpoint:
        lora = LORA.model_copy(update={"artifact_name": f"checkpoints/{step:06}-1/lora.safetensors"})
        return Checkpoint(
            checkpoint_id="", step=step, uri="", manifest_digest="", size_bytes=9, lora=lora, held_out_loss=loss
        )

    stay = [checkpoint(1500, 0.5), checkpoint(750, None)]
    page = Page(render_report(DONE, history, artifacts=[LORA], checkpoints=stay))
    assert "1,500 checkpoints/001500-1/lora.safetensors 1.29 MB 0.5000 750 checkpoints/000750-1/" in page.text
    addresses = {link.get("href") for link in page.all("a")}
    assert addresses >= {f"./checkpoints/{step:06}-1/lora.safetensors" for step in (750, 1500)}
    assert "Checkpoints that stay" not in Page(render_report(DONE, history, artifacts=[LORA])).text


def test_the_many_pictures_are_folded_behind_the_other_files(history: History) -> None:
    pictures = [LORA.model_copy(update={"artifact_name": f"preview-{number}.png"}) for number in range(3)]
    text = Page(render_report(DONE, history, artifacts=[*pictures, LORA])).text
    places = [
        text.index(part) for part in ("lora.safetensors 1.29", "3 pictures in full size", "preview-0", "preview-2")
    ]
    assert places == sorted(places)


def test_the_page_says_when_the_job_ended(history: History) -> None:
    assert "· ended 1970-01-01 00:17:41 UTC" in Page(render_report(DONE, history)).text
    assert "· ended" not in Page(render_report(JOB, history)).text


def test_the_time_of_a_job_that_did_not_get_far_is_all_accounted_for() -> None:
    failed = DONE.model_copy(update={"state": JobState.FAILED})
    history = History()
    assert "in all before the first step 1 min 0 s 100%" in Page(render_report(failed, history)).text
    history.seconds[Activity.VALIDATING] = 15.0
    text = Page(render_report(failed, history)).text
    assert "anything else before the first step 45 s 75% measuring the held-out loss 15 s 25%" in text
    again = failed.model_copy(update={"epoch": 2})
    assert "earlier attempts and anything else 45 s" in Page(render_report(again, history)).text
    assert ("h2", "Time") not in Page(render_report(JOB, History())).texts
    assert ("h2", "Time") in Page(render_report(JOB, history)).texts


@pytest.mark.parametrize("prompt", ["red apple", 'it\'s "quoted"', "two\nlines \\ and </code>"])
@pytest.mark.parametrize("shown", [False, True], ids=["as given", "as shown"])
def test_the_example_of_use_is_python_with_the_prompt(prompt: str, shown: bool) -> None:
    history = History()
    if shown:  # with a trigger word
        history.add(preview_of(0, prompt), png=png_of(16))
    job = DONE.model_copy(update={"config": TrainConfig(preview_prompts=("an apple" if shown else prompt,))})
    code = Page(render_report(job, history, artifacts=[LORA], sampling=Sampling(base="a/b"))).code()
    constants = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert {prompt, "a/b", "lora.safetensors", 28, 3.5} <= set(constants)


def test_the_example_of_use_draws_the_prompt_as_it_was_drawn() -> None:
    history = History()
    history.add(preview_of(4, "sks, an apple"), png=png_of(8))
    job = DONE.model_copy(update={"config": TrainConfig(preview_prompts=("[trigger], an apple",))})
    assert "'sks, an apple'" in Page(render_report(job, history, artifacts=[LORA])).code()


def test_use_is_shown_of_the_file_that_is_there(history: History) -> None:
    failed = DONE.model_copy(update={"state": JobState.FAILED})
    metrics = LORA.model_copy(update={"artifact_name": "metrics.csv"})
    assert "Use it" not in Page(render_report(failed, history, artifacts=[metrics])).text
    best = Page(render_report(failed, history, artifacts=[metrics, BEST])).code()
    assert "weight_name='lora-best.safetensors'" in best
    assert "weight_name='lora.safetensors'" in Page(render_report(DONE, history, artifacts=[LORA])).code()


def test_the_best_adapter_is_the_one_to_use_and_the_last_is_told_apart(history: History) -> None:
    page = Page(render_report(DONE, history, artifacts=[LORA, BEST]))
    assert "weight_name='lora-best.safetensors'" in page.code()
    best = "lora-best.safetensors is the best step: the adapter after step 2, with the lowest held-out loss, 2."
    assert f"{best} lora.safetensors is the last step: the adapter after step 4, 2.5." in page.text
    assert page.text.index("lora-best.safetensors 1 B") < page.text.index("lora.safetensors 1.29 MB")
    assert "is the best step" not in Page(render_report(DONE, history, artifacts=[LORA])).text
    failed = DONE.model_copy(update={"state": JobState.FAILED})
    assert best in Page(render_report(failed, history, artifacts=[BEST])).text


def test_the_last_adapter_is_the_one_to_use_where_it_is_the_best(history: History) -> None:
    history.add(ValidationCompleted(step=4, loss=1.5))
    page = Page(render_report(DONE, history, artifacts=[LORA, BEST]))
    assert "weight_name='lora.safetensors'" in page.code()
    assert "is the best step" not in page.text


def test_the_curve_shows_base_best_and_yardstick(history: History) -> None:
    text = Page(render_report(DONE, history)).text
    assert "base: 5 best, step 2: 2 predicting nothing: 4" in text


def test_a_best_adapter_of_no_step_is_not_praised(history: History) -> None:
    history.add(ValidationCompleted(step=0, loss=0.5))
    text = Page(render_report(DONE, history, artifacts=[LORA, BEST])).text
    assert "lowest before the first step: lora-best.safetensors changes nothing." in text
    assert "lora.safetensors is the last step: the adapter after step 4, 2.5." in text
    assert "weight_name='lora.safetensors'" in Page(render_report(DONE, history, artifacts=[LORA, BEST])).code()
    text = Page(render_report(WARM, history, artifacts=[LORA, BEST])).text
    assert "lowest before the first step: lora-best.safetensors is the file it began with." in text


def test_a_run_that_ended_early_says_of_how_many_steps(history: History) -> None:
    assert "steps 4 of 100, stopped early" in Page(render_report(DONE, history)).text
    assert "no longer fell" not in Page(render_report(DONE, history)).text
    assert "steps 4 of 100 " in Page(render_report(JOB, history)).text


@pytest.mark.parametrize(
    ("patience", "least", "said"),
    [
        (1, 0.0, "the held-out loss no longer fell."),
        (3, 0.01, "the held-out loss no longer fell by more than 0.01, 3 measurements in a row."),
    ],
)
def test_a_run_that_ended_early_says_why(patience: int, least: float, said: str, history: History) -> None:
    config = TrainConfig(early_stopping_patience=patience, early_stopping_min_delta=least)
    job = DONE.model_copy(update={"config": config})
    assert f"Stopped early: {said}" in Page(render_report(job, history)).text
    history.add(steps_of(1.0, first=100))
    assert "Stopped early" not in Page(render_report(job, history)).text


def test_a_warm_start_is_not_called_the_base(history: History) -> None:
    page = Page(render_report(WARM, history, contact_sheet_png=png_of(16)))
    result = page.text[: page.text.index("Settings")]
    assert "start → step 2: 60% lower" in result
    assert "Start is the file it began with, not the base model." in result
    assert page.all("img")[0]["alt"] == "red apple, by the file it began with"
    assert any("from 5 at the file it began with" in (drawing["aria-label"] or "") for drawing in page.all("svg"))
    assert result.count("base") == 1
    history.add(ValidationCompleted(step=0, loss=0.5))
    assert "the file it began with: training made it worse" in Page(render_report(WARM, history)).text


def test_a_cancelled_job_says_how_far_it_came_and_of_no_success(history: History) -> None:
    cancelled = DONE.model_copy(update={"state": JobState.CANCELLED})
    text = Page(render_report(cancelled, history)).text
    assert "It was cancelled after step 4 of 100 It left no adapter." in text
    assert "There is no contact sheet, since the job was cancelled." in text
    assert "stopped early" not in text
    assert "Result" not in text
    assert "It left no adapter" not in Page(render_report(cancelled, history, artifacts=[BEST])).text
    assert "It was cancelled before its first step" in Page(render_report(cancelled, History())).text
    assert "cancelled after" not in Page(render_report(DONE, history)).text


def test_held_out_samples_are_not_said_to_be_trained_on(history: History) -> None:
    names = [f"sample-{number:02}" for number in range(23)]
    page = Page(render_report(DONE, history, contact_sheet_png=png_of(16), held_out_names=names))
    assert "Held out to measure on, not trained on: sample-00, sample-01" in page.text
    assert "sample-19 and 3 more." in page.text
    assert page.all("img")[-1]["alt"] == "Contact sheet: every crop with its captions, held-out ones too"
    everything = Page(render_report(DONE, history, contact_sheet_png=png_of(16)))
    assert "as training saw it" in str(everything.all("img")[-1]["alt"])
    assert "Held out to measure on" not in everything.text
    share = DONE.model_copy(update={"config": TrainConfig(held_out_share=0.25)})
    assert "A share of 0.25 of the samples is held out" in Page(render_report(share, history)).text
    assert "no held-out data" not in Page(render_report(share, History())).text


def test_the_page_of_a_very_long_run_is_small() -> None:
    history = History()
    history.add(steps_of(*[1.0, 1.5] * 10_000))
    assert len(render_report(DONE, history)) < 120_000
