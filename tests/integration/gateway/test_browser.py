"""The gateway as pages in a real browser reach it: its own do, those of strangers change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TypeVar

import fluxsmith
import httpx
import pytest
from fluxsmith import JobState
from playwright.sync_api import Browser, ConsoleMessage, Page, Request

from tests.integration.gateway.browser import REBOUND, running_browser, stranger
from tests.integration.gateway.conftest import body

Kept = TypeVar("Kept")

GOES_ON = {JobState.QUEUED, JobState.RUNNING}
# A page of another origin may be of the same site, or of another: `localhost` and `127.0.0.1` are two sites.
STRANGERS = ["127.0.0.1", "localhost"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.close()


@pytest.fixture
def job(web: httpx.Client, client: fluxsmith.Client) -> Iterator[fluxsmith.JobHandle]:
    """A job that goes on until something stops it."""
    job = client.job(web.post("/jobs", json=body(steps=50_000)).json()["job_id"])
    yield job
    job.cancel()


@pytest.mark.parametrize("host", STRANGERS)
def test_a_form_on_another_page_pauses_no_job(page: Page, gateway: str, job: fluxsmith.JobHandle, host: str) -> None:
    form = f'<form method="post" action="{gateway}/jobs/{job.id}/pause"><button>Win</button></form>'
    with stranger(form) as port:
        page.goto(f"http://{host}:{port}/")
        with page.expect_response(f"{gateway}/jobs/*/pause") as answered:
            page.click("button")
    assert answered.value.status == 403
    assert answered.value.json()["reason"] == "ORIGIN_REFUSED"
    assert job.refresh().state in GOES_ON


@pytest.mark.parametrize("host", STRANGERS)
def test_a_script_on_another_page_pauses_no_job(page: Page, gateway: str, job: fluxsmith.JobHandle, host: str) -> None:
    fetched = "url => fetch(url, {method: 'POST', mode: 'no-cors'}).then(() => 'read', error => error.name)"
    with stranger("<p>Hello</p>") as port:
        page.goto(f"http://{host}:{port}/")
        # Sent and answered, but with headers by which the page does not even learn that.
        assert page.evaluate(fetched, f"{gateway}/jobs/{job.id}/pause") == "TypeError"
    assert job.refresh().state in GOES_ON


def test_a_page_in_a_sandbox_whose_origin_is_null_pauses_no_job(
    page: Page, gateway: str, job: fluxsmith.JobHandle
) -> None:
    fetched = f"fetch('{gateway}/jobs/{job.id}/pause', {{method: 'POST', mode: 'no-cors'}})"
    script = f"{fetched}.then(() => 'read', e => e.name).then(told => parent.postMessage(told, '*'))"
    listening = "<script>told = new Promise(resolve => onmessage = event => resolve(event.data))</script>"
    with stranger(f'{listening}<iframe sandbox="allow-scripts" srcdoc="<script>{script}</script>"></iframe>') as port:
        page.goto(f"http://127.0.0.1:{port}/")
        assert page.evaluate("told") == "TypeError"
    assert job.refresh().state in GOES_ON


def test_a_page_whose_name_leads_to_the_gateway_reads_and_changes_nothing(
    page: Page, gateway: str, job: fluxsmith.JobHandle
) -> None:
    # The page itself comes from its owner's server, whose name leads to the gateway from then on.
    form = f'<form method="post" action="/jobs/{job.id}/pause"><button>Win</button></form>'
    page.route("**/lure", lambda route: route.fulfill(body=form, content_type="text/html"))
    own = f"http://{REBOUND}:{gateway.rpartition(':')[2]}"
    page.goto(f"{own}/lure")
    with page.expect_response(f"{own}/jobs/*/pause") as changed:
        page.click("button")
    assert changed.value.request.headers["origin"] == own
    read = page.goto(f"{own}/jobs")
    assert read
    assert changed.value.status == read.status == 421
    assert read.json()["reason"] == "HOST_NOT_SERVED"
    assert job.refresh().state in GOES_ON


def test_a_page_of_the_gateways_own_pauses_a_job(page: Page, gateway: str, job: fluxsmith.JobHandle) -> None:
    page.goto(f"{gateway}/docs")
    fetched = "id => fetch(`/jobs/${id}/pause`, {method: 'POST'}).then(answer => answer.status)"
    assert page.evaluate(fetched, job.id) == 200
    assert job.refresh().state not in GOES_ON


def test_the_documentation_shows_and_sends_requests_without_a_stranger(page: Page, gateway: str) -> None:
    asked: list[Request] = []
    said: list[ConsoleMessage] = []
    page.on("request", partial(_keep, asked))
    page.on("console", partial(_keep, said))
    page.on("pageerror", partial(_keep, said))
    page.add_init_script("addEventListener('securitypolicyviolation', e => console.error(e.violatedDirective))")
    page.goto(f"{gateway}/docs")
    page.click("#operations-training-create_job .opblock-summary-control")
    page.wait_for_selector("#operations-training-create_job .body-param__example")
    page.click("#operations-health-healthz .opblock-summary-control")
    page.click("#operations-health-healthz .try-out__btn")
    page.click("#operations-health-healthz .execute")
    answered = page.inner_text("#operations-health-healthz .live-responses-table .response .response-col_status")
    assert answered.split()[0] == "200"
    urls = [request.url for request in asked]
    assert f"{gateway}/healthz" in urls
    assert [url for url in urls if not url.startswith((f"{gateway}/", "data:"))] == []
    assert [str(one) for one in said] == []


def _keep(kept: list[Kept], one: Kept) -> None:
    kept.append(one)
