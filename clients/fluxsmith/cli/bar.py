"""A line of progress that fits its terminal: what matters least is left out first, and nothing is cut or wrapped."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.progress import ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.text import Text

_BAR_CELLS = 20
_FEWEST_BAR_CELLS = 8
_BEFORE_THE_BAR = 2  # facts that matter more than a bar: its count is told in figures too
_SPINNER = Spinner("dots", style="progress.spinner")


class RowColumn(ProgressColumn):
    """The only column of a `Progress`, as wide as the terminal.

    A task has the fields `facts`, texts with the most important first, `moves`, whether anything goes on, and
    `counted`, whether its count is told.
    """

    def render(self, task: Task) -> "Row":
        """Return the line of a task."""
        moves = task.fields["moves"] and not task.finished
        return Row(
            spinner=_SPINNER.render(task.get_time()) if moves else None,
            description=task.description,
            done=int(task.completed),
            total=None if task.total is None else int(task.total),
            facts=tuple(task.fields["facts"]),
            moves=moves,
            counted=task.fields["counted"],
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """A description, a count, facts and a bar, side by side as far as there is room."""

    spinner: RenderableType | None
    description: str
    done: int
    total: int | None
    facts: Sequence[str]
    moves: bool
    counted: bool

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Any width will do, and all there is is best."""
        return Measurement(1, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Write the line."""
        count = f" {self.done}/{self.total}" if self.counted and self.total is not None else ""
        head = Text(self.description, no_wrap=True)
        # A name may be longer than the line.
        head.truncate(max(options.max_width // 3, 8), overflow="ellipsis")
        moving = Text.assemble(self.spinner, " ") if isinstance(self.spinner, Text) else Text()
        head = Text.assemble(moving, head, (count, "progress.download"))
        facts, bar_cells = _fitting(self.facts, options.max_width - head.cell_len)
        yield from head.render(console)
        if bar_cells:
            shown = ProgressBar(self.total, self.done, width=bar_cells, pulse=self.total is None and self.moves)
            yield from Text(" ").render(console)
            yield from console.render(shown, options)
        if facts:
            line = Text(f" {', '.join(facts)}")
            left_cells = options.max_width - head.cell_len - (bar_cells + 1 if bar_cells else 0)
            line.truncate(max(left_cells, 0), overflow="ellipsis")
            yield from line.render(console)


def _fitting(facts: Sequence[str], room: int) -> tuple[list[str], int]:
    """Return those of the facts that fit into so many cells, and the cells of the bar: 0 for none.

    The first fact stays whatever it takes.
    """
    kept: list[str] = []
    bar_cells = 0
    for at, fact in enumerate(facts):
        if at == _BEFORE_THE_BAR and room > _FEWEST_BAR_CELLS:
            bar_cells, room = _FEWEST_BAR_CELLS, room - _FEWEST_BAR_CELLS - 1
        taken = Text(fact).cell_len + (2 if kept else 1)
        if not kept or taken <= room:
            kept.append(fact)
            room -= taken
    if not bar_cells and room > _FEWEST_BAR_CELLS:
        bar_cells, room = _FEWEST_BAR_CELLS, room - _FEWEST_BAR_CELLS - 1
    return kept, min(_BAR_CELLS, bar_cells + max(room, 0)) if bar_cells else 0
