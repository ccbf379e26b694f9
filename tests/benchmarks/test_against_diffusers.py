"""The comparison with diffusers' script: everything around the script itself, which the suite does not have."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from benchmarks.against_diffusers import CASES, DEMO, main, table
from benchmarks.diffusers_losses import HeldOut
from benchmarks.diffusers_script import (
    MODEL,
    SCRIPT,
    ScriptError,
    ScriptSettings,
    adapted_modules,
    checked_script,
    run_script,
    script_arguments,
    step_time,
    write_pictures,
)
from benchmarks.encoder_desk import TENANT, EncoderDesk, folder_models, store_settings, uploaded
from benchmarks.pictures import CaptionedFile
from services.common.object_store import ObjectStore

SETTINGS = ScriptSettings(
    rank=4, alpha=8, learning_rate=1e-3, batch_size=2, steps=6, seed=3, save_every=4, modules=("a.to_q", "b.proj")
)
MODULE = "transformer_blocks.0.attn.to_q"
# Leaves what the real one leaves, and the arguments that it was given.
LEAVES_FILES = """
import sys
from pathlib import Path
out = Path(next(each for each in sys.argv if each.startswith("--output_dir=")).partition("=")[2])
for folder in (out, out / "checkpoint-4"):
    folder.mkdir(exist_ok=True)
    (folder / "pytorch_lora_weights.safetensors").write_text(" ".join(sys.argv[1:]))
print("Steps: 100%|####| 6/6 [00:03<00:00, 2.0it/s]")
"""


def checkout(folder: Path, source: str) -> Path:
    """A folder that holds such a script where diffusers has it."""
    script = folder / SCRIPT
    script.parent.mkdir(parents=True)
    script.write_text(source)
    return folder


def lora(folder: Path, size: float) -> Path:
    """A LoRA of rank 1 for one module."""
    row = torch.linspace(-1, 1, 192)
    tensors = {
        f"transformer.{MODULE}.lora_A.weight": row[None, :],
        f"transformer.{MODULE}.lora_B.weight": size * row[:, None],
    }
    path = folder / f"lora-{size}.safetensors"
    safetensors.torch.save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def held_out() -> Iterator[HeldOut]:
    """The demo's held-out drawings, encoded."""
    with store_settings("embedded") as settings:
        store = ObjectStore(settings)
        desk = EncoderDesk(store, folder_models(MODEL, torch.device("cpu"), "fp32"))
        files = [
            CaptionedFile(path=path, caption=path.with_suffix(".txt").read_text().strip())
            for path in sorted((DEMO / "heldout").glob("*.png"))
        ]
        _, pointer = desk.encode(uploaded(desk.datasets, files), 64)
        desk.close()
        yield HeldOut(MODEL, store, TENANT, pointer.manifest_digest)


def test_a_folder_without_the_script_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"benchmarks.against_diffusers: {tmp_path} has no {SCRIPT}: give the folder of a checkout of diffusers\n"
    )


def test_an_interpreter_without_the_packages_is_refused_by_their_names(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(ScriptError, match=r"lacks torchvision, datasets, .*--python"):
        checked_script(checkout(tmp_path, ""), str(bare))
    with pytest.raises(ScriptError, match="no Python that runs"):
        checked_script(tmp_path, str(tmp_path / "nothing"))


def test_both_trainers_get_the_same_pixels_and_captions(tmp_path: Path) -> None:
    assert write_pictures(DEMO / "train", tmp_path) == 36
    rows = [json.loads(line) for line in (tmp_path / "rows" / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 36
    for row in rows:
        ours = tmp_path / "files" / row["file_name"]
        assert ours.read_bytes() == (tmp_path / "rows" / row["file_name"]).read_bytes()
        assert ours.with_suffix(".txt").read_text() == row["text"]
        assert Image.open(ours).size == (64, 64)


def test_every_second_picture_is_the_mirror_image_of_the_first(tmp_path: Path) -> None:
    write_pictures(DEMO / "train", tmp_path)
    key, mirrored = (np.asarray(Image.open(tmp_path / "files" / f"key{end}.png")) for end in ("", "-mirrored"))
    assert (key[:, ::-1] == mirrored).all()
    assert not (key == mirrored).all()


def test_the_script_is_told_what_ours_is_told(tmp_path: Path) -> None:
    given = dict(each.removeprefix("--").split("=") for each in script_arguments(tmp_path, tmp_path / "out", SETTINGS))
    expected = {"rank": "4", "lora_alpha": "8", "learning_rate": "0.001", "train_batch_size": "2", "seed": "3"}
    assert expected.items() <= given.items()
    assert given["max_train_steps"] == "6"
    assert given["lora_layers"] == "a.to_q,b.proj"
    assert given["resolution"] == "64"


def test_files_are_found_by_the_step_that_wrote_them(tmp_path: Path) -> None:
    script = checkout(tmp_path, LEAVES_FILES) / SCRIPT
    run = run_script(script, sys.executable, tmp_path / "rows", tmp_path / "out", SETTINGS)
    assert [(step, path.parent.name) for step, path in run.loras.items()] == [(4, "checkpoint-4"), (6, "out")]
    assert "--rank=4" in run.loras[6].read_text()
    assert run.step_time_s == 0.5


def test_a_script_that_fails_is_reported_with_its_last_words(tmp_path: Path) -> None:
    script = checkout(tmp_path, LEAVES_FILES + "raise SystemExit('no such column')") / SCRIPT
    with pytest.raises(ScriptError, match="no such column"):
        run_script(script, sys.executable, tmp_path / "rows", tmp_path / "out", SETTINGS)


def test_a_step_takes_what_the_progress_bar_says_in_the_end() -> None:
    log = "Steps:   0%| | 0/150 [00:00<?, ?it/s]\rSteps: 100%|#| 150/150 [01:15<00:00, 2.0it/s, loss=2.1]"
    assert step_time(log) == 0.5
    assert step_time("nothing") == 0


def test_modules_are_read_off_a_file_of_ours() -> None:
    keys = [f"transformer.{MODULE}.lora_{side}.weight" for side in "AB"]
    assert adapted_modules([*keys, "transformer.proj_mlp.lora_A.weight"]) == ("proj_mlp", MODULE)


def test_cases_with_the_same_settings_give_them_to_both() -> None:
    names = ("rank", "alpha", "learning_rate", "batch_size")
    for case in CASES[:-1]:
        assert case.same_modules
        assert [case.ours[name] for name in names] == [case.script[name] for name in names]
        assert case.guided == ("guidance" in case.ours)


def test_the_base_has_the_loss_that_the_demo_tells(held_out: HeldOut) -> None:
    base = held_out.losses()
    assert base.bypass == pytest.approx(5.09, abs=0.01)
    assert base.guided > 2 * base.bypass  # it imitates guided sampling, which is not what pictures look like


def test_a_file_is_measured_and_leaves_no_trace(held_out: HeldOut, tmp_path: Path) -> None:
    base = held_out.losses()
    assert held_out.losses(lora(tmp_path, 0.0)).bypass == pytest.approx(base.bypass, rel=1e-6)
    assert held_out.losses(lora(tmp_path, 1.0)).bypass != pytest.approx(base.bypass, rel=1e-3)
    assert held_out.losses() == base


def test_the_table_has_mean_and_range_of_each_trainer() -> None:
    def outcome(trainer: str, seed: int, loss: float) -> dict[str, Any]:
        return {
            "case": "even levels",
            "trainer": trainer,
            "seed": seed,
            "losses": {"bypass": loss, "guided": 3.0},
            "curve": {"25": loss - 0.5, "50": loss},
            "step_time_s": 0.125,
        }

    text = table(
        {
            **dict.fromkeys(("model", "device", "date", "steps", "script_version"), "x"),
            "base": {"bypass": 5.0, "guided": 17.0},
            "cases": [{"name": "even levels"}, {"name": "not run yet"}],
            "outcomes": [outcome("fluxsmith", 0, 2.0), outcome("fluxsmith", 1, 2.5), outcome("diffusers", 0, 2.75)],
        }
    )
    ours, theirs = text.splitlines()[3:]
    assert ours.split() == [
        "even",
        "levels",
        "fluxsmith",
        "2.250",
        "2.00-2.50",
        "3.000",
        "3.00-3.00",
        "1.750",
        "1.50-2.00",
        "0.125",
    ]
    assert theirs.split()[2:5] == ["diffusers", "2.750", "2.75-2.75"]
