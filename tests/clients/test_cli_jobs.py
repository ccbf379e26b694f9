"""`fluxsmith jobs`: how many of them are listed, and what is said of the others."""

import json
from collections.abc import Iterable

import pytest
from fluxsmith.cli.app import run
from fluxsmith.v1 import trainer_pb2 as trainer
from google.protobuf.message import Message

from tests.clients.recording import Recorder

USUAL, THERE = 50, 101


@pytest.fixture
def many(services: Recorder, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Services with a full page of jobs, and one more."""
    jobs = [trainer.TrainingJob(job_id=f"j{n}", state=trainer.TRAINING_JOB_STATE_FAILED) for n in range(THERE)]

    def answer(request: Message) -> Iterable[Message]:
        assert isinstance(request, trainer.ListTrainingJobsRequest)
        if request.page_token:
            yield trainer.ListTrainingJobsResponse(jobs=jobs[100:])
        else:
            yield trainer.ListTrainingJobsResponse(jobs=jobs[:100], next_page_token="more")

    monkeypatch.setattr(services, "answer", answer)
    return services


@pytest.mark.parametrize(("words", "shown"), [([], USUAL), (["--limit", "100"], 100), (["--limit", "3"], 3)])
def test_table_is_cut_and_says_how_to_see_more(
    many: Recorder, words: list[str], shown: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["jobs", "--user", "ada", *words]) == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 1 + shown
    assert told.err == (
        f"the newest {shown} are shown, and there are more; "
        f"see them with: fluxsmith jobs --user ada --limit {10 * shown}\n"
    )


def test_table_of_all_says_nothing_of_more(many: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["jobs", "--limit", str(THERE)]) == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 1 + THERE
    assert told.err == ""


def test_json_says_nothing_of_files_that_a_listing_leaves_out(
    services: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    services.job.result.lora_uri = "s3://b/k"
    assert run(["jobs", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["result"]["lora_uri"] == "s3://b/k"
    assert "artifacts" not in row["result"]


@pytest.mark.parametrize(("words", "listed"), [([], THERE), (["--limit", "3"], 3)])
def test_json_is_cut_only_where_that_is_asked_for(
    many: Recorder, words: list[str], listed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["jobs", "--json", *words]) == 0
    told = capsys.readouterr()
    assert len(json.loads(told.out)) == listed
    assert told.err == ""
