"""Small pieces of HTML for notebooks. Everything that comes from people is escaped here."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from fluxsmith._best import file_facts

if TYPE_CHECKING:  # they draw themselves with this
    from fluxsmith.data import Dataset
    from fluxsmith.training import TrainingJob

_MOST_PROBLEMS = 5
_FONT = "font-family:system-ui,sans-serif;font-size:13px;line-height:1.5"


def job_card(job: "TrainingJob") -> str:
    """Return what is known of a job as a table."""
    facts = {
        "job": job.id,
        "state": job.state,
        "steps": f"{job.step} of {job.total_steps}" if job.total_steps else "",
        "dataset": job.dataset_id,
        "user": job.user_id,
        "held-out loss": job.held_out_line,
        **file_facts(job),
        "failure": f"{job.failure.message} {job.failure.remedy}" if job.failure else "",
    }
    return card(job.name or job.id, facts)


def dataset_card(dataset: "Dataset") -> str:
    """Return what is known of a dataset as a table, with the first of its problems."""
    problems = [f"{problem.sample_name}: {problem.message}" for problem in dataset.problems[:_MOST_PROBLEMS]]
    more = dataset.problem_count - len(problems)
    facts = {
        "dataset": dataset.id,
        "state": dataset.state,
        "samples": str(dataset.sample_count),
        "encoded": f"{dataset.encoded_count}, {dataset.cached_count} of them known already",
        "failure": dataset.failure_message,
        **{f"problem {number}": problem for number, problem in enumerate(problems, start=1)},
        "": f"and {more} more problems" if more > 0 else "",
    }
    return card(dataset.name or dataset.id, facts)


def card(title: str, facts: Mapping[str, str]) -> str:
    """Return a table of facts under a title; those that are empty are left out."""
    rows = "".join(
        f'<tr style="background:none"><th scope="row" style="text-align:left;font-weight:normal;opacity:.7;'
        f'padding:0 1em 0 0">{escape(name)}</th><td style="text-align:left;padding:0">{escape(fact)}</td></tr>'
        for name, fact in facts.items()
        if fact
    )
    table = f'<table style="margin:0;border:0;font:inherit;color:inherit">{rows}</table>'
    return f'<div style="{_FONT}"><b>{escape(title)}</b>{table}</div>'


def progress(title: str, facts: Sequence[str], share: float, notes: Sequence[str], curve: str) -> str:
    """Return a heading with facts, a bar of which `share` (0 to 1) is done, a drawing, and notes below."""
    told = " · ".join(escape(fact) for fact in facts)
    percent = 100 * min(max(share, 0.0), 1.0)
    bar = (
        '<div style="border-radius:2px;background:#8884;margin:4px 0">'
        f'<div style="height:4px;border-radius:2px;background:#4c78a8;width:{percent:.1f}%"></div></div>'
    )
    lines = "".join(f'<div style="opacity:.8">{escape(note)}</div>' for note in notes)
    return f'<div style="{_FONT};max-width:640px"><b>{escape(title)}</b> {told}{bar}{curve}{lines}</div>'


def pictures(shown: Sequence[tuple[bytes, str]]) -> str:
    """Return PNG files side by side, each with its text below it."""
    figures = "".join(
        '<figure style="margin:0;width:160px">'
        f'<img style="width:160px;border-radius:4px" alt="{escape(text)}" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        f'<figcaption style="opacity:.8;overflow-wrap:anywhere">{escape(text)}</figcaption></figure>'
        for data, text in shown
    )
    return f'<div style="{_FONT};display:flex;flex-wrap:wrap;gap:8px;max-width:840px">{figures}</div>'
