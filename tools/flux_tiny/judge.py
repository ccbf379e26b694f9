"""Make the judge of flux-tiny's pictures: a small CLIP and a head that tells clean pictures from corrupted ones.

    python -m tools.flux_tiny.judge --packages DIR --sets DIR --vae DIR --work DIR --out assets/flux-tiny-judge

Started again, the run goes on where it was killed. It shares subjects with the base but neither seeds, captions nor
views, and the base is never trained on what it says.

Legend: B batch, M those of it whose caption has a wrong twin, C color channels, H/W px, E embedding, S tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from tools.flux_tiny.drawings import Subject, draw_sets, read_subjects
from tools.flux_tiny.judge_card import Training, write_card
from tools.flux_tiny.judge_measure import measure
from tools.flux_tiny.judge_model import Judge, new_clip, save_judge
from tools.flux_tiny.judge_scenes import (
    BARE,
    MISTAKEN,
    SAID,
    STYLED,
    STYLED_AGAIN,
    STYLES,
    Pool,
    draw_pool,
    draw_scenes,
)
from tools.flux_tiny.judge_views import clean_view, corrupt
from tools.flux_tiny.learner import Learner
from tools.flux_tiny.scenes import Album
from tools.flux_tiny.text import learn_clip_tokenizer

SEED = 20_011
BATCH = 192
CORRUPTED = 24  # more pictures in each batch, for the clean head alone
KEPT_SHARE = (
    0.4  # of the patches: less than half the cost, and a strong augmentation (Li et al., 2023, arXiv:2212.00794)
)
WHOLE_FROM = 0.9  # of the steps; from there on all patches are seen, as in use
PLAIN_UNTIL = 0.4  # of the steps; the share of plain pictures falls from 1 to theirs in the pool
PLAIN = STYLES.index("plain")
BLURRED = STYLES.index("blurred")  # a style that looks like a corruption: the clean head is not taught on it


def train_judge(judge: Judge, pool: Pool, snapshot: Path, *, steps: int) -> Judge:
    """Train, and return the judge with averaged weights."""
    first = ("embedding", "prototypes", "projection", "clean", "logit_scale")
    learner = Learner(judge, snapshot, steps=steps, lr=2.5e-3, weight_decay=0.05, average=0.99, first=first)
    while learner.step < steps:
        kept = KEPT_SHARE if learner.done < WHOLE_FROM else 1.0
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = judge_loss(judge, pool, draw_rows(pool, learner.done), kept)
        learner.update(loss)
        with torch.no_grad():
            judge.clip.logit_scale.clamp_(max=4.0)
    return learner.averaged.eval()


def draw_rows(pool: Pool, done: float) -> Tensor:
    """Rows of a batch, (B,): plain pictures alone at first, since styles hide subjects from a new tower.

    In 60 steps on all styles the loss by prototype did not leave that of the subjects' shares, 7.22; on plain pictures
    it fell to 6.86.
    """
    rows_B = torch.randint(len(pool.pictures), (BATCH,))
    plain_N = (pool.style == PLAIN).nonzero().squeeze(1)
    kept_plain_B = torch.rand(BATCH) < 1 - done / PLAIN_UNTIL
    return torch.where(kept_plain_B, plain_N[torch.randint(len(plain_N), (BATCH,))], rows_B)


def judge_loss(judge: Judge, pool: Pool, rows_B: Tensor, kept: float) -> Tensor:
    """Contrast of pictures and captions, subjects by prototype, and clean against corrupted."""
    spoilt_B = torch.randint(len(pool.pictures), (CORRUPTED,))
    with torch.autocast("cpu", enabled=False):
        clean_BCHW = clean_view(pool.pictures[rows_B].float() / 255, pool.turns[rows_B])
        mush_BCHW = pool.mush[torch.randint(len(pool.mush), (CORRUPTED // 6,))].float() / 255
        spoilt_BCHW = corrupt(clean_view(pool.pictures[spoilt_B].float() / 255, pool.turns[spoilt_B]), mush_BCHW)
    image_BE = judge.images(torch.cat([clean_BCHW, spoilt_BCHW]) * 2 - 1, kept)
    wording_B = torch.tensor(random.choices([BARE, SAID, STYLED, STYLED_AGAIN], [0.3, 0.2, 0.3, 0.2], k=BATCH))
    mistaken_B = (wording_B >= STYLED).nonzero().squeeze(1)[: BATCH // 3]
    tokens_BS = torch.cat([pool.tokens[rows_B, wording_B], pool.tokens[rows_B[mistaken_B], MISTAKEN]]).long()
    longest = int((tokens_BS != judge.clip.config.text_config.eos_token_id).sum(1).max()) + 1
    right_BE, wrong_BE = judge.texts(tokens_BS[:, :longest]).split([BATCH, len(mistaken_B)])
    clean_B = judge.clean_logits(image_BE)
    is_clean_B = (torch.arange(len(image_BE)) < BATCH).float()
    counted_B = torch.cat([pool.style[rows_B] != BLURRED, pool.style[spoilt_B] != BLURRED])
    subject_B = pool.subject[rows_B]
    return (
        contrast(image_BE[:BATCH], right_BE, subject_B, judge.clip.logit_scale.exp(), wrong_BE, mistaken_B)
        + 0.5 * F.cross_entropy(judge.subject_logits(image_BE[:BATCH]), subject_B, label_smoothing=0.05)
        + 0.25 * F.cross_entropy(judge.subject_logits(right_BE), subject_B, label_smoothing=0.05)
        + 0.3 * F.binary_cross_entropy_with_logits(clean_B, is_clean_B, weight=counted_B.float())
    )


def contrast(
    image_BE: Tensor, text_BE: Tensor, subject_B: Tensor, scale: Tensor, wrong_ME: Tensor, mistaken_M: Tensor
) -> Tensor:
    """CLIP's loss, both ways. Captions of a picture's own subject are not among its negatives.

    `wrong_ME` are captions that say a wrong style of the pictures at `mistaken_M`, each a negative of that one alone.
    """
    logits_BB = scale * image_BE @ text_BE.T
    others_BB = (subject_B[:, None] == subject_B) & ~torch.eye(len(subject_B), dtype=torch.bool)
    logits_BB = logits_BB.masked_fill(others_BB, -torch.inf)
    wrong_M = scale * (image_BE[mistaken_M] * wrong_ME).sum(1)
    wrong_B1 = torch.full((len(subject_B), 1), -torch.inf).index_put(
        (mistaken_M, torch.zeros_like(mistaken_M)), wrong_M
    )
    place_B = torch.arange(len(subject_B))
    named = F.cross_entropy(torch.cat([logits_BB, wrong_B1], 1), place_B)
    return (named + F.cross_entropy(logits_BB.T, place_B)) / 2


def get_tokenizer(album: Album, subjects: list[Subject], folder: Path) -> CLIPTokenizer:
    """Learn the vocabulary from captions as they are drawn, or read the one that is done."""
    if not (folder / "tokenizer.json").exists():
        random.seed(SEED)
        torch.manual_seed(SEED)
        drawn = [words for _ in range(500) for scene in draw_scenes(album) for words in scene.wordings]
        names = [name for subject in subjects for name in subject.names]
        learn_clip_tokenizer(drawn + 2 * names).save_pretrained(folder)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def get_pool(album: Album, tokenizer: CLIPTokenizer, vae: Path, path: Path, count: int) -> Pool:
    if not path.exists():
        decoder = AutoencoderKL.from_pretrained(vae, torch_dtype=torch.float32).eval()
        draw_pool(album, tokenizer, decoder, count=count, seed=SEED + 1).save(path)
    return Pool.load(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder that fetch.sh filled")
    parser.add_argument("--sets", type=Path, required=True, help="folder for the drawn sets")
    parser.add_argument("--vae", type=Path, default=Path("assets/flux-tiny/vae"), help="draws the mush")
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures and snapshots")
    parser.add_argument("--out", type=Path, required=True, help="folder for the judge")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--pictures", type=int, default=40_000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    draw_sets(arguments.packages, arguments.sets)
    subjects = read_subjects(arguments.packages)
    album = Album(arguments.sets, subjects, held_out=None)
    tokenizer = get_tokenizer(album, subjects, work / "tokenizer")
    pool = get_pool(album, tokenizer, arguments.vae, work / "pool.pt", arguments.pictures)
    del album
    random.seed(SEED + 2)
    torch.manual_seed(SEED + 2)
    judge = train_judge(Judge(new_clip(tokenizer), len(subjects)), pool, work / "judge.pt", steps=arguments.steps)
    save_judge(judge, tokenizer, arguments.out)
    figures = measure(arguments.out, arguments.sets, subjects)
    print(json.dumps(asdict(figures), indent=1))
    write_card(arguments.out, describe(judge, pool, subjects, arguments.steps), figures)


def describe(judge: Judge, pool: Pool, subjects: list[Subject], steps: int) -> Training:
    """What the card says of the run, with the time of a step as measured on three."""
    judge.train()
    started = time.process_time()
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = judge_loss(judge, pool, draw_rows(pool, 1.0), KEPT_SHARE)
        loss.backward()
    return Training(
        subjects=len(subjects),
        pictures=len(pool.pictures),
        steps=steps,
        batch=BATCH,
        step_s=(time.process_time() - started) / 3,
        parameters=sum(weight.numel() for weight in judge.clip.parameters()),
    )


if __name__ == "__main__":
    main()
