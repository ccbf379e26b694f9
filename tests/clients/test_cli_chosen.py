"""`fluxsmith train FOLDER` with nothing else: what is chosen from the pictures, and told."""

from pathlib import Path

import pytest
from fluxsmith import TrainConfig
from fluxsmith.cli.app import run
from fluxsmith.cli.chosen import FEWEST_VIEWS, MOST_VIEWS, choose, epochs_for
from fluxsmith.data import CaptionedImage

from tests.clients.recording import Recorder


def pictures(count: int) -> list[CaptionedImage]:
    return [
        CaptionedImage(path=Path(f"{number}.png"), captions=(f"caption {number}",), name=f"{number}.png")
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("count", "resolutions", "epochs"),
    [(1, 1, 1000), (8, 1, 125), (10, 1, 100), (25, 1, 100), (25, 2, 50), (300, 1, 13), (3000, 2, 1), (9000, 1, 1)],
)
def test_pictures_are_seen_often_enough_but_not_forever(count: int, resolutions: int, epochs: int) -> None:
    assert epochs_for(count, resolutions) == epochs
    views = count * resolutions * epochs
    assert FEWEST_VIEWS <= views <= MOST_VIEWS or epochs == 1


def test_length_is_chosen_in_epochs_whatever_the_batch_is() -> None:
    """Pictures of eight shapes make eight batches, not one: only the trainer knows how many."""
    config, lines = choose(TrainConfig(batch_size=8), pictures(8), measured=False, early=False)
    assert (config.epochs, config.steps) == (125, None)
    assert lines[0].startswith("chosen: 125 epochs of 8 pictures: each is seen 125 times")


def test_a_job_that_starts_early_is_as_long_as_full_batches_make_it_and_says_so() -> None:
    given = TrainConfig(batch_size=8)
    config, lines = choose(given, pictures(25), resolutions=2, measured=False, early=True)
    assert (config.epochs, config.steps) == (None, 313)
    assert "313 steps for 25 pictures: each is seen 100 times if batches are full" in lines[0]


@pytest.mark.parametrize(
    ("count", "batch_size", "accumulated", "steps"), [(25, 8, 2, 157), (25, 1, 4, 625), (250_000, 2, None, 100_000)]
)
def test_steps_of_a_job_that_starts_early_are_those_of_its_optimizer_and_not_too_many(
    count: int, batch_size: int, accumulated: int | None, steps: int
) -> None:
    given = TrainConfig(batch_size=batch_size, gradient_accumulation_steps=accumulated)
    config, _ = choose(given, pictures(count), measured=False, early=True)
    assert config.steps == steps


def test_prompts_that_the_trainer_would_refuse_are_not_chosen() -> None:
    bad = [CaptionedImage(path=Path("a"), captions=(text,), name="a") for text in ("\x07", "\u200b", "x" * 2001)]
    good = CaptionedImage(path=Path("b"), captions=("by Mr\u00a0Smith",), name="b")
    assert choose(TrainConfig(), [*bad, good], measured=False, early=False)[0].preview_prompts == ("by Mr\u00a0Smith",)


def test_few_pictures_are_all_learnt_and_of_many_a_tenth_is_measured_on() -> None:
    few, _ = choose(TrainConfig(), pictures(19), measured=False, early=False)
    many, _ = choose(TrainConfig(), pictures(20), measured=False, early=False)
    assert (few.held_out_share, many.held_out_share) == (None, 0.1)


def test_previews_are_of_captions_that_differ() -> None:
    chosen, _ = choose(TrainConfig(), pictures(10), measured=False, early=False)
    assert chosen.preview_prompts == ("caption 0", "caption 5")
    alike = [CaptionedImage(path=Path("a.png"), captions=("a cat",), name=f"{number}") for number in range(5)]
    assert choose(TrainConfig(), alike, measured=False, early=False)[0].preview_prompts == ("a cat",)


def test_what_is_given_is_left_alone() -> None:
    given = TrainConfig(epochs=3, held_out_share=0, preview_prompts=())
    assert choose(given, pictures(50), measured=False, early=False) == (given, [])
    config, _ = choose(TrainConfig(), pictures(50), measured=True, early=False)
    assert config.held_out_share is None


def test_choices_are_told(services: Recorder, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", str(folder)]) == 0
    told = capsys.readouterr().err
    assert "chosen: 1000 epochs of 1 picture: each is seen 1000 times" in told
    assert "chosen: previews of the first caption" in told
