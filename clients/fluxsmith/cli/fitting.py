"""Terminals that may be narrow: tables that do not fit become lines of facts, and lines are broken between words."""

import re

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

_GAP = "  "
# A command line is copied whole: the terminal breaks it where it must, which leaves it one line.
_COMMANDS = re.compile(r"`[^`]*`|(?<=: )fluxsmith .*?(?=   |$)")
_LABEL = re.compile(r".{1,14}?  +(?=\S)")
_HELD = "\0"


def fitted(table: Table, console: Console) -> RenderableType:
    """Return the table as it is for a pipe; for a terminal without its empty columns, or else as blocks of lines.

    A block begins with the first cell of its row, and has each other one with its heading: none of them is broken.
    """
    if not console.is_terminal:
        return table
    headings = [str(column.header) for column in table.columns]
    columns = [[Text.from_markup(str(cell)) for cell in column.cells] for column in table.columns]
    kept = [at for at, column in enumerate(columns) if not at or any(cell.plain for cell in column)]
    widths = [max(cell_len(headings[at]), *(cell.cell_len for cell in columns[at])) for at in kept]
    if sum(widths) + len(_GAP) * (len(kept) - 1) <= console.width:
        return _without_others(table, kept)
    rows = zip(*(columns[at] for at in kept), strict=True)
    return Text("\n").join(_block([headings[at] for at in kept], row, console.width) for row in rows)


def _without_others(table: Table, kept: list[int]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for at in kept:
        shown.add_column(table.columns[at].header, no_wrap=True)
    for row in zip(*(table.columns[at].cells for at in kept), strict=True):
        shown.add_row(*row)
    return shown


def _block(headings: list[str], row: tuple[Text, ...], width: int) -> Text:
    """Return a row as lines of at most `width` cells; a fact that is wider than a line is cut, the first cell never."""
    lines = [row[0].copy()]
    for heading, cell in zip(headings[1:], row[1:], strict=True):
        if not cell.plain:
            continue
        fact = Text.assemble((f"{heading} ", "dim"), cell)
        if lines[-1].cell_len + len(_GAP) + fact.cell_len > width:
            lines.append(Text())
        lines[-1].append(_GAP).append(fact)
    for line in lines[1:]:
        line.truncate(width, overflow="ellipsis")
    return Text("\n").join(lines)


def at_words(text: str, console: Console) -> str:
    """Return lines for a terminal, broken between words and never within a command; for a pipe the lines as they are.

    What follows stands below the fact of a line that begins with a label, else it is set in by two.
    """
    if not console.is_terminal:
        return text
    return "\n".join(_broken(line, console.width) for line in text.split("\n"))


def _broken(line: str, width: int) -> str:
    label = _LABEL.match(line)
    begin = label[0] if label and label.end() <= width // 3 else ""
    lines = [begin]
    held = _COMMANDS.sub(lambda found: found[0].replace(" ", _HELD), line)
    for word in re.findall(r" *[^ ]+", held[len(begin) :]):
        shown = word.replace(_HELD, " ")
        if lines[-1] != begin and cell_len(lines[-1] + shown) > width:
            lines.append(" " * (len(begin) or len(_GAP)) + shown.lstrip(" "))
        else:
            lines[-1] += shown
    return "\n".join(lines)
