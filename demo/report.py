"""report.html: one page that opens alone, with the pictures inside."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape


def write_report(out: Path, figures: dict[str, object]) -> None:
    """Write report.html into `out`, from the pictures and figures that lie there."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(("jinja",)))
    page = environment.get_template("report.html.jinja").render(
        figures=figures, before_after=_inline(out / "before_after.png"), loss=_inline(out / "loss.png")
    )
    (out / "report.html").write_text(page, encoding="utf-8")


def _inline(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
