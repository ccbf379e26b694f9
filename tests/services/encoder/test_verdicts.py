"""What is wrong with samples: every one is named with its kind, and the policy decides what becomes of the rest."""

from __future__ import annotations

import pytest

from services.encoder.problems import Problem
from tests.services.damage import damage
from tests.services.encoder.conftest import AddSample, Desk, noise_png


def bad_samples(add_sample: AddSample) -> dict[str, Problem]:
    """Two good samples and one of each bad kind."""
    add_sample("good 1")
    add_sample("good 2")
    add_sample("text", data=b"hello")
    add_sample("half", data=noise_png(0)[:3000])
    add_sample("huge", data=noise_png(0, 101, 101))
    add_sample("tiny", data=noise_png(0, 15, 60))
    return {
        "half": Problem.TRUNCATED,
        "huge": Problem.TOO_LARGE,
        "text": Problem.NOT_AN_IMAGE,
        "tiny": Problem.TOO_SMALL,
    }


def test_bad_samples_fail_the_encoding_and_all_of_them_are_named(desk: Desk, add_sample: AddSample) -> None:
    expected = bad_samples(add_sample)
    outcome = desk.encode()
    assert {problem.sample_name: problem.problem for problem in outcome.problems} == expected
    assert "4 of 6 samples cannot be used, first" in outcome.failure
    assert desk.datasets.pointer(desk.tenant, desk.dataset_id) is None


def test_share_of_bad_samples_is_not_rounded(desk: Desk, add_sample: AddSample) -> None:
    for number in range(100):
        add_sample(f"{number}", data=b"no image" if number < 29 else noise_png(0, 16, 16))
    assert desk.encode(skip_bad_samples=True, max_bad_share=0.29).failure == ""
    assert desk.encode(skip_bad_samples=True, max_bad_share=0.28).failure


@pytest.mark.parametrize("share", [4 / 6, 1.0])
def test_bad_samples_can_be_left_out(desk: Desk, add_sample: AddSample, share: float) -> None:
    expected = bad_samples(add_sample)
    outcome = desk.encode(skip_bad_samples=True, max_bad_share=share)
    assert outcome.failure == ""
    assert {problem.sample_name: problem.problem for problem in outcome.problems} == expected
    assert {sample.sample_name for sample in desk.manifest.samples} == {"good 1", "good 2"}


def test_too_many_bad_samples_fail_the_encoding(desk: Desk, add_sample: AddSample) -> None:
    bad_samples(add_sample)
    assert "a share of 0.66" in desk.encode(skip_bad_samples=True, max_bad_share=0.66).failure


@pytest.mark.parametrize("skip", [False, True])
def test_encoding_without_a_usable_sample_fails(desk: Desk, add_sample: AddSample, skip: bool) -> None:
    assert "no samples" in desk.encode(skip_bad_samples=skip).failure
    add_sample("text", data=b"hello")
    assert "'text'" in desk.encode(skip_bad_samples=skip).failure


def test_lost_original_is_a_problem_of_its_sample(desk: Desk, add_sample: AddSample) -> None:
    records = [add_sample(name) for name in ("a", "b", "c")]
    originals = f"{desk.tenant}/datasets/{desk.dataset_id}/originals/"
    desk.datasets.store.delete(f"{originals}{records[0].content_digest}")
    damage(desk.datasets.store, f"{originals}{records[1].content_digest}")
    outcome = desk.encode(skip_bad_samples=True)
    assert {(p.sample_name, p.problem) for p in outcome.problems} == {(n, Problem.ORIGINAL_LOST) for n in "ab"}
    assert [sample.sample_name for sample in desk.manifest.samples] == ["c"]


def test_caption_whose_end_is_not_read_is_warned_of_with_the_lost_words(desk: Desk, add_sample: AddSample) -> None:
    caption = "apple " * 100 + "tail"
    add_sample("a", caption)
    for _ in range(2):  # also when all of it comes from the cache
        problems = desk.encode().problems
        assert {(problem.sample_name, problem.problem) for problem in problems} == {("a", Problem.CAPTION_TRUNCATED)}
        assert [problem.message.partition(": ")[2][:4] for problem in problems] == ["CLIP", "T5 d"]
        assert all("apple apple" in problem.message for problem in problems)


def test_trigger_without_its_word_is_warned_of(desk: Desk, add_sample: AddSample) -> None:
    add_sample("a", "a [trigger]", "a dog")
    (problem,) = desk.encode().problems
    assert (problem.problem, problem.warning) == (Problem.TRIGGER_MISSING, True)
    assert desk.encode(trigger_word="sks").problems == ()


def test_a_caption_is_shown_as_it_was_written(desk: Desk, add_sample: AddSample) -> None:
    family = "\U0001f468\u200d\U0001f469"
    add_sample("a", f"{family}\u3000[trigger]")
    messages = [problem.message for problem in desk.encode().problems if problem.problem is Problem.TRIGGER_MISSING]
    assert [message.partition(" holds ")[0] for message in messages] == [f"caption '{family}\u3000[trigger]'"]


def test_captions_that_t5_has_no_token_for_are_warned_of_with_the_words(desk: Desk, add_sample: AddSample) -> None:
    red, cat = "\u0440\u044b\u0436\u0438\u0439", "\u043a\u043e\u0442"  # in Russian
    add_sample("a", f"a {red} {cat} sits")
    add_sample("b", "\u4e00\u53ea\u732b")
    add_sample("c", "a red cat")
    for _ in range(2):  # also when all of it comes from the cache
        problems = {problem.sample_name: problem for problem in desk.encode().problems}
        assert set(problems) == {"a", "b"}
        assert all(problem.problem is Problem.CAPTION_UNREADABLE and problem.warning for problem in problems.values())
        assert (
            f"T5 cannot read '{red}', '{cat}': it sees <unk>, as for every character it does not know"
            in problems["a"].message
        )
        assert "'\u4e00\u53ea\u732b'" in problems["b"].message


def test_a_manifest_says_which_file_a_sample_is_of(desk: Desk, add_sample: AddSample) -> None:
    record = add_sample("a")
    for _ in range(2):  # also when all of it comes from the cache
        desk.encode()
        assert [sample.content_digest for sample in desk.manifest.samples] == [record.content_digest]
