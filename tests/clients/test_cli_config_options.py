"""The options about the configuration: three ways to say a field, which wins, and faults told before sending."""

import re
from pathlib import Path

import pytest
from fluxsmith import AdapterType, LearningRateSchedule, Optimizer, SigmaSampling, TargetPreset, TrainConfig
from fluxsmith._wire_config import read_config
from fluxsmith.cli.app import run
from fluxsmith.cli.config_options import OF_MEMORY, with_options
from fluxsmith.v1 import trainer_pb2 as trainer

from services.common.settings import ServiceSettings
from services.trainer.estimate.estimator import MemoryEstimator
from tests.clients.recording import Recorder
from tests.clients.test_adapter_upload import ADAPTER

EVERY_OPTION = [
    *("--steps", "9", "--batch-size", "2", "--accumulate", "4", "--learning-rate", "2", "--schedule", "cosine"),
    *("--warmup-steps", "3", "--optimizer", "prodigy", "--sigma-sampling", "static-shift"),
    *("--caption-dropout", "0.1", "--ema-decay", "0.99", "--seed", "7", "--rank", "8", "--alpha", "4"),
    *("--adapter-type", "DoRA", "--targets", "all_linear", "--no-kohya", "--held-out-share", "0.2"),
    *("--early-stop", "3", "--preview", "a cat", "--preview", "a dog", "--preview-every", "5"),
]
EVERY_VALUE = TrainConfig(
    steps=9,
    batch_size=2,
    gradient_accumulation_steps=4,
    learning_rate=2.0,
    learning_rate_schedule=LearningRateSchedule.COSINE,
    warmup_steps=3,
    optimizer=Optimizer.PRODIGY,
    sigma_sampling=SigmaSampling.STATIC_SHIFT,
    caption_dropout=0.1,
    ema_decay=0.99,
    seed=7,
    rank=8,
    alpha=4.0,
    adapter_type=AdapterType.DORA,
    targets=TargetPreset.ALL_LINEAR,
    kohya_file=False,
    held_out_share=0.2,
    early_stopping_patience=3,
    preview_prompts=("a cat", "a dog"),
    preview_interval_steps=5,
)
FILE = r"""
rank = 4
epochs = 3
alpha = 2
masked_loss = false
optimizer = "lion"
preview_prompts = ["a cat"]
target_regex = 'blocks\.\d+'
rank_pattern = { "to_[qkv]" = 8 }
"""
FILE_VALUES = TrainConfig(
    rank=4,
    epochs=3,
    alpha=2.0,
    masked_loss=False,
    optimizer=Optimizer.LION,
    preview_prompts=("a cat",),
    target_regex=r"blocks\.\d+",
    rank_pattern={"to_[qkv]": 8},
)


def trained_with(services: Recorder, folder: Path, *arguments: str) -> TrainConfig:
    assert run(["train", str(folder), *arguments]) == 0
    [request] = services.queued()
    return read_config(request.config)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "style.toml"
    path.write_text(FILE)
    return str(path)


def test_options_become_the_configuration(services: Recorder, folder: Path) -> None:
    assert trained_with(services, folder, *EVERY_OPTION) == EVERY_VALUE


def test_without_options_length_and_previews_are_chosen_and_the_rest_is_left_to_the_trainer(
    services: Recorder, folder: Path
) -> None:
    assert trained_with(services, folder) == TrainConfig(epochs=1000, preview_prompts=("a cat",))


def test_file_becomes_the_configuration(services: Recorder, folder: Path, file: str) -> None:
    assert trained_with(services, folder, "--config", file) == FILE_VALUES


def test_example_in_the_documentation_is_a_configuration(services: Recorder, folder: Path, file: str) -> None:
    document = (Path(__file__).parents[2] / "docs/client.md").read_text()
    Path(file).write_text(document.partition("```toml\n")[2].partition("```")[0])
    config = trained_with(services, folder, "--config", file, "--set", r"rank_pattern=ff\.net=32")
    assert (config.steps, config.adapter_type, config.rank_pattern) == (2000, AdapterType.DORA, {r"ff\.net": 32})


def test_words_become_the_configuration(services: Recorder, folder: Path) -> None:
    words = [
        *("rank=1", "rank=4", "epochs=3", "alpha=2", "masked_loss=no", "optimizer=Lion", "preview_prompts=a cat"),
        *(r"target_regex=blocks\.\d+", "rank_pattern=to_[qkv]=8"),
    ]
    assert trained_with(services, folder, *(part for word in words for part in ("--set", word))) == FILE_VALUES


def test_repeated_words_add_up_for_lists_and_tables(services: Recorder, folder: Path) -> None:
    words = ["preview_prompts=a=b", "preview_prompts=c", "rank_pattern=a=b=1", "rank_pattern=c=2"]
    config = trained_with(services, folder, "--steps", "9", *(part for word in words for part in ("--set", word)))
    assert config == TrainConfig(steps=9, preview_prompts=("a=b", "c"), rank_pattern={"a=b": 1, "c": 2})


def test_options_win_over_words_and_words_over_the_file(services: Recorder, folder: Path, file: str) -> None:
    words = ["--set", "rank=5", "--set", "alpha=5", "--set", "preview_prompts=a dog"]
    config = trained_with(services, folder, "--config", file, *words, "--rank", "6")
    assert (config.rank, config.alpha, config.preview_prompts, config.masked_loss) == (6, 5.0, ("a dog",), False)


def test_length_by_option_takes_the_place_of_the_length_in_the_file(
    services: Recorder, folder: Path, file: str
) -> None:
    config = trained_with(services, folder, "--config", file, "--steps", "9")
    assert (config.steps, config.epochs) == (9, None)


def test_early_start_takes_steps_from_anywhere(services: Recorder, folder: Path) -> None:
    assert trained_with(services, folder, "--start-early", "--set", "steps=9").steps == 9


def test_warm_start_from_a_file_is_uploaded_first(services: Recorder, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "old.safetensors").write_bytes(ADAPTER)
    config = trained_with(services, folder, "--warm-start", "old.safetensors", "--set", "warm_start_uri=s3://b/other")
    assert config.warm_start_uri == "s3://b/adapter"
    assert services.names()[0] == "CreateAdapterUpload"


def test_warm_start_from_an_address_is_sent_as_it_is(services: Recorder, folder: Path) -> None:
    assert trained_with(services, folder, "--warm-start", "s3://b/k").warm_start_uri == "s3://b/k"
    assert "CreateAdapterUpload" not in services.names()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("--rank 0", "'--rank': 0 is out of range: 1 to 512"),
        ("--accumulate 0", "'--accumulate': 0 is out of range: 1 to 1024"),
        ("--learning-rate 1", "'--learning-rate': 1.0 is out of range: over 0, at most 0.1"),
        ("--optimizer prodigy --learning-rate 11", "'--learning-rate': 11.0 is out of range: over 0, at most 10"),
        ("--optimizer adam", "(did you mean adamw"),
        ("--steps 1 --epochs 1", "steps and epochs exclude each other"),
        ("--set lerning_rate=1", "'lerning_rate' is not a field of the configuration (did you mean learning_rate"),
        ("--set rank", "'--set': 'rank' is not of the form field=value"),
        ("--set rank=many", "'--set rank': 'many' is not a whole number"),
        ("--set rank=1.5", "'--set rank': '1.5' is not a whole number"),
        ("--set alpha=nan", "'--set alpha': 'nan' is not a number"),
        ("--set masked_loss=maybe", "'--set masked_loss': 'maybe' is neither yes nor no"),
        ("--set file_dtype=fp8", "'--set file_dtype': 'fp8' is none of fp32, bf16, fp16"),
        ("--set preview_width_px=72", "'--set preview_width_px': 72 is out of range: a multiple of 16, 32 to 2048"),
        ("--set rank_pattern=x", "'--set rank_pattern': 'x' is not of the form REGEX=RANK"),
        ("--set rank_pattern=x=513", "'--set rank_pattern': x is 513; a rank is 1 to 512"),
        ("--set warm_start_uri=x", "give a file to --warm-start"),
        ("--preview a " * 17, "'--preview': 17 prompts are given; give 16 at most"),
        ("--preview " + "a" * 2001, "'--preview': a prompt has 2001 characters; use 2000 at most"),
        ("--early-stop 3", "'--early-stop': it needs --held-out or --held-out-share"),
        ("--held-out ink --held-out-share 0.1", "'--held-out-share': it takes the place of --held-out"),
        ("--rank 0 --set beta1=1", "'--set beta1': 1.0 is out of range: 0 to below 1; --rank: 0 is out of range"),
        ("--steps many", "'--steps': 'many' is not a whole number"),
        ("--set optimizer=lyon", "'lyon' is none of lion, adamw,"),
    ],
)
def test_fault_is_told_before_anything_is_sent(
    services: Recorder, folder: Path, arguments: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(folder), *arguments.split()]) == 2
    assert problem in capsys.readouterr().err
    assert not services.requests


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rank = 0", "style.toml: rank': 0 is out of range"),
        ("rank = '8'", "style.toml: rank': '8' is not a whole number"),
        ("rank = true", "style.toml: rank': True is not a whole number"),
        ("alpha = inf", "inf is not a finite number"),
        ("kohya_file = 'no'", "style.toml: kohya_file': 'no' is not true or false"),
        ("optimizer = 3", "style.toml: optimizer': 3 is not the name of a choice"),
        ("preview_prompts = 'a cat'", "style.toml: preview_prompts': 'a cat' is not a list of texts"),
        ("rank_pattern = { a = 'b' }", "is not a table of whole numbers"),
        ("lerning_rate = 1", "(did you mean learning_rate"),
        ("rank", "style.toml is not TOML"),
    ],
)
def test_fault_in_the_file_is_told_before_anything_is_sent(
    services: Recorder, folder: Path, file: str, text: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(file).write_text(text)
    assert run(["train", str(folder), "--config", file]) == 2
    assert problem in capsys.readouterr().err
    assert not services.requests


def test_faults_of_all_sources_are_told_at_once(
    services: Recorder, folder: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(file).write_text("rank = '8'\nlerning_rate = 1\nbeta1 = 2\nalpha = true")
    words = ["--set", "steps=abc", "--set", "foo=1", "--set", "loss_function=hubr", "--set", "seed"]
    options = ["--alpha", "much", "--optimizer", "foo", "--batch-size", "0"]
    assert run(["train", str(folder), "--config", file, *words, *options]) == 2
    told = capsys.readouterr().err
    for fault in ("toml: rank: '8'", "toml': 'lerning_rate'", "toml: beta1: 2.0", "toml: alpha: True"):
        assert fault in told
    for fault in ("--set steps: 'abc'", "'foo' is not a field", "--set loss_function: 'hubr'", "'seed' is not"):
        assert fault in told
    for fault in ("--alpha: 'much'", "--optimizer: 'foo'", "--batch-size: 0"):
        assert fault in told


def test_fault_of_a_value_is_laid_to_where_it_was_given(
    services: Recorder, folder: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(file).write_text("rank = 0")
    assert run(["train", str(folder), "--config", file, "--rank", "x"]) == 2
    told = capsys.readouterr().err
    assert "'--rank': 'x' is not a whole number" in told
    assert "style.toml: rank: 0 is out of range" in told


def test_empty_word_takes_back_lists_and_tables(services: Recorder, folder: Path, file: str) -> None:
    words = ["--set", "preview_prompts=", "--set", "rank_pattern=a=1", "--set", "rank_pattern=", "--set"]
    config = trained_with(services, folder, "--config", file, *words, "rank_pattern=c=2")
    assert (config.preview_prompts, config.rank_pattern) == (None, {"c": 2})


def test_preview_of_the_empty_prompt_can_be_asked_for(services: Recorder, folder: Path) -> None:
    assert trained_with(services, folder, "--preview", "").preview_prompts == ("",)


def test_early_stop_says_how_often_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert run(["train", "--help"]) == 0
    assert "10 a run by default, set by validation_interval_steps" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", ["--config nowhere.toml", "--warm-start nowhere", "--warm-start style.toml"])
def test_file_that_cannot_be_used_is_told_before_anything_is_sent(
    services: Recorder, folder: Path, file: str, arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(folder), *arguments.split()]) == 2
    assert arguments.split()[1] in capsys.readouterr().err
    assert not services.requests


def test_estimate_takes_every_option_and_shows_those_of_memory(
    services: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["estimate", "--help"]) == 0
    shown = set(re.findall(r"--[a-z-]+", capsys.readouterr().out.partition("Options")[2]))
    assert {"--rank", "--targets", "--ema-decay", "--set"} <= shown
    assert not shown & {"--steps", "--learning-rate", "--early-stop", "--preview", "--seed"}
    assert run(["estimate", *EVERY_OPTION]) == 0
    [request] = services.asked(trainer.EstimateMemoryRequest)
    assert read_config(request.config) == EVERY_VALUE


ALONE = {**vars(EVERY_VALUE), "learning_rate": 0.1}  # higher only with prodigy


@pytest.mark.parametrize("name", [name for name, value in ALONE.items() if value is not None])
def test_options_of_memory_are_those_that_change_the_estimate(name: str) -> None:
    estimator = MemoryEstimator(ServiceSettings(base_model="/nowhere", device="cpu"))
    peak_bytes = estimator.estimate({name: ALONE[name]}, for_dev=True).peak_bytes
    assert (peak_bytes != estimator.estimate({}, for_dev=True).peak_bytes) is (name in OF_MEMORY)


def test_a_service_s_field_is_told_with_its_option() -> None:
    said = "use a batch_size of 2, or a larger bucket_step_px; sigma_mean has no effect"
    assert with_options(said) == (
        "use a batch_size (--batch-size) of 2, or a larger bucket_step_px (--bucket-step); sigma_mean has no effect"
    )
