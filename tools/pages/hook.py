"""What mkdocs does to each page of docs/ beyond Markdown: fills in what is generated, mends links out of the folder."""

from __future__ import annotations

import os.path
import re
from typing import Any

from tools.pages.contract import contract
from tools.pages.reasons import reasons

GENERATED = {"<!-- contract -->": contract, "<!-- reasons -->": reasons}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the page as the site has it. mkdocs calls this by its name."""
    for marker, generate in GENERATED.items():
        if marker in markdown:
            markdown = markdown.replace(marker, generate())
    return LINK.sub(lambda match: _inside(match, page.file.src_uri), markdown)


def _inside(match: re.Match[str], page: str) -> str:
    """Links to the repository's other files lead nowhere on the site: it names their paths instead."""
    text, target = match[1], match[2]
    path = os.path.normpath(os.path.join("docs", os.path.dirname(page), target))  # noqa: PTH118, PTH120 - not on disk
    if path.startswith("docs/"):
        return match[0]
    return f"`{path}`" if path.endswith(text.strip("`/")) else f"{text} (`{path}`)"
