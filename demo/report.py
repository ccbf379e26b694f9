"""report.html: one page that opens alone, with the pictures inside."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape

LABELS = {
    "steps": "steps",
    "seconds_total": "seconds in all",
    "seconds_submit_to_first_step": "seconds from the request to the first step",
    "seconds_per_step": "seconds a step, median",
    "heldout_loss_base": "held-out loss of the base",
    "heldout_loss_lora": "held-out loss with the LoRA",
    "heldout_loss_zero": "held-out loss of predicting nothing",
    "lora_bytes": "bytes of the LoRA",
    "lora_uri": "address of the LoRA",
}


def write_report(out: Path, figures: dict[str, object]) -> None:
    """Write report.html into `out`, from the pictures and figures that lie there."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(("jinja",)))
    page = environment.get_template("report.html.jinja").render(
        figures=figures,
        labels=LABELS,
        before_after=_inline(out / "before_after.png"),
        loss=_inline(out / "loss.png"),
    )
    (out / "report.html").write_text(page, encoding="utf-8")


def _inline(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
