"""`fluxsmith train FOLDER` with nothing else: what is chosen from the pictures, and told."""

from pathlib import Path

import pytest
from fluxsmith import TrainConfig
from fluxsmith.cli.app import run
from fluxsmith.cli.chosen import choose, steps_for
from fluxsmith.data import CaptionedImage

from tests.clients.recording import Recorder


def pictures(count: int) -> list[CaptionedImage]:
    return [
        CaptionedImage(path=Path(f"{number}.png"), captions=(f"caption {number}",), name=f"{number}.png")
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("count", "batch", "steps"),
    [(1, 1, 1000), (10, 1, 1000), (25, 1, 2500), (25, 8, 313), (300, 1, 4000), (9000, 4, 2250)],
)
def test_pictures_are_seen_often_enough_but_not_forever(count: int, batch: int, steps: int) -> None:
    assert steps_for(count, batch) == steps


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
    assert "chosen: 1000 steps for 1 picture" in told
    assert "chosen: previews of the first caption" in told
