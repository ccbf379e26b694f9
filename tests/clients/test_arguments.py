"""Arguments of the wrong kind: refused by name, with what belongs there, before anything is sent."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fluxsmith
import pytest
from fluxsmith import AsyncClient, Client, TrainConfig
from fluxsmith.errors import InvalidRequest

from tests.clients.recording import Recorder


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda client: client.train(None), "dataset is None, not a Dataset or the identifier of one."),
        (lambda client: client.train("d", held_out=7), "held_out is 7, not a Dataset or the identifier of one."),
        (lambda client: client.train("./photos"), "`datasets.create_from_folder` makes one of a folder."),
        (lambda client: client.train("d", name=5), "name is 5, not text."),
        (lambda client: client.train("d", name="\ud800"), r"name is '\ud800', not text."),
        (lambda client: client.train("d", user_id=1.5), "user_id is 1.5, not text or a whole number."),
        (lambda client: client.train("d", user_id=True), "user_id is True, not text or a whole number."),
        (lambda client: client.train("d", start_while_encoding="no"), "is 'no', not True or False."),
        (lambda client: client.train("d", priority="high"), "is 'high', not a whole number from -100 to 100."),
        (lambda client: client.submit("d", {"rank": 4}), "config is {'rank': 4}, not a TrainConfig."),
        (lambda client: client.datasets.create(name=5), "name is 5, not text."),
        (lambda client: client.datasets.create_from_folder(None), "path is None, not a path."),
        (lambda client: client.datasets.encode(None), "dataset is None, not a Dataset"),
        (lambda client: client.datasets.get(None), "dataset_id is None, not a Dataset"),
        (lambda client: client.job(5), "job_id is 5, not text."),
        (lambda client: client.upload_adapter(None), "path is None, not a path."),
    ],
)
def test_wrong_kind_is_named(client: Client, recorder: Recorder, call: Callable[[Any], Any], told: str) -> None:
    async def with_asyncio() -> None:
        async with AsyncClient(encoder=recorder.address, trainer=recorder.address) as other:
            await call(other)

    for attempt in (lambda: call(client), lambda: asyncio.run(with_asyncio())):
        with pytest.raises(InvalidRequest) as caught:
            attempt()
        assert told in str(caught.value)
        assert (caught.value.reason, len(caught.value.violations)) == ("FIELD_INVALID", 1)
    assert not recorder.requests


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda client: client.job("j").watch(after_sequence="1"), "after_sequence is '1', not a whole number"),
        (lambda client: client.job("j").watch(after_sequence=2**63), "not a whole number from 0 to 2^63 - 1."),
        (lambda client: list(client.jobs(user_id="")), "user_id is '', not the identifier of a user, or None"),
        (lambda client: client.job("j").wait(timeout_s=float("nan")), "timeout_s is nan, not seconds"),
        (lambda client: client.job("j").result(timeout_s="soon"), "timeout_s is 'soon', not seconds"),
        (lambda client: client.datasets.upload("d", ["cat.png"]), "images is 'cat.png', not a CaptionedImage"),
        (lambda client: client.datasets.upload("d", None), "images is None, not a CaptionedImage"),
    ],
)
def test_wrong_kind_is_named_when_something_is_done_with_a_thing(
    client: Client, call: Callable[[Any], Any], told: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        call(client)
    assert told in str(caught.value)


def test_user_may_be_a_number(client: Client, recorder: Recorder) -> None:
    client.train("d", user_id=123)
    assert [request.user_id for request in recorder.queued()] == ["123"]


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("steps", "10", "config.steps: is '10', not a whole number."),
        ("steps", 2**40, "config.steps: 1099511627776 is out of range: 1 to 100000."),
        ("alpha", "big", "config.alpha: is 'big', not a number."),
        ("use_rslora", "yes", "config.use_rslora: is 'yes', not True or False."),
        ("target_regex", 7, "config.target_regex: is 7, not text."),
        ("preview_prompts", "a cat", "config.preview_prompts: is 'a cat', not a list, each text."),
        ("rank_pattern", {"a": "b"}, "config.rank_pattern: is {'a': 'b'}, not a mapping of names to whole numbers."),
    ],
)
def test_wrong_kind_of_a_field_is_told_with_the_right_one(client: Client, field: str, value: Any, told: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.validate(fluxsmith.TrainConfig(**{field: value}))
    assert told in str(caught.value)


def test_memory_is_estimated_of_the_defaults(client: Client, recorder: Recorder) -> None:
    client.estimate_memory()
    assert not recorder.requests[-1].config.ListFields()  # type: ignore[attr-defined]


@pytest.mark.parametrize("fields", [{"name": "a\nb"}, {"user_id": "u" * 65}, {"name": "\u200b"}, {"user_id": "\x07"}])
def test_names_that_the_services_would_refuse_are_told_without_asking(
    client: Client, recorder: Recorder, fields: dict[str, str]
) -> None:
    calls: list[Callable[..., object]] = [client.validate, partial(client.submit, "d")]
    for ask in calls:
        with pytest.raises(InvalidRequest, match=next(iter(fields))):
            ask(TrainConfig(), **fields)
    assert not recorder.requests


def test_a_trigger_word_that_the_encoder_would_refuse_is_told_before_the_upload(
    client: Client, recorder: Recorder, folder: Path
) -> None:
    for word in ("a\nb", "\u200b", "w" * 65, " a"):
        with pytest.raises(InvalidRequest, match=r"options\.trigger_word"):
            client.datasets.create_from_folder(folder, trigger_word=word)
    assert not recorder.requests
