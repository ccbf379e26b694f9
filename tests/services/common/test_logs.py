"""A log record is one line, whatever callers put into it; a traceback stays readable below it."""

from __future__ import annotations

import logging

from services.common.logs import LineFormatter

ORDER = "\x1b[2J\x07\n2026-01-01T00:00:00+0000 ERROR forged: record"


def formatted(message: str, *, error: BaseException | None = None) -> list[str]:
    trace = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("services.encoder", logging.INFO, "", 1, "%s", (message,), trace)
    return LineFormatter().format(record).split("\n")


def test_control_characters_are_shown_and_no_second_record_is_forged() -> None:
    (line,) = formatted(f"dataset {ORDER}")
    assert line.endswith(r"INFO services.encoder: dataset \x1b[2J\x07\n2026-01-01T00:00:00+0000 ERROR forged: record")


def test_traceback_keeps_its_lines_and_cannot_pass_for_records() -> None:
    try:
        raise ValueError(ORDER)
    except ValueError as error:
        first, *trace = formatted("it failed", error=error)
    assert first.endswith("it failed")
    assert trace[0] == "  Traceback (most recent call last):"
    assert r"  ValueError: \x1b[2J\x07" in trace
    assert all(line.startswith("  ") and "\x1b" not in line for line in trace)
