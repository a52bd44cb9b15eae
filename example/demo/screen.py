"""The output of the demo: progress bars on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Advance = Callable[[int], None]

# Without a terminal, lines are wide enough for the tables.
PLAIN_WIDTH = 120
PLAIN_STEPS = 4


class Screen:
    """The console that the demo writes to."""

    def __init__(self) -> None:
        """Use a fixed width if the output is not a terminal."""
        self._console = Console(highlight=False)
        if not self._console.is_terminal:
            self._console = Console(highlight=False, width=PLAIN_WIDTH)

    def write(self, text: str, *, style: str | None = None) -> None:
        """Write a line."""
        self._console.print(text, style=style, markup=False, soft_wrap=True)

    def write_table(self, table: Table) -> None:
        """Write a table."""
        self._console.print(table)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Advance]:
        """Yield the function to call with the number of finished items."""
        if self._console.is_terminal:
            with self._bar() as bar:
                task = bar.add_task(label, total=total)
                yield lambda done: bar.update(task, completed=done)
        else:
            yield self._lines(label, total)

    def _bar(self) -> Progress:
        label = TextColumn("{task.description:<14}")
        return Progress(label, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=self._console)

    def _lines(self, label: str, total: int) -> Advance:
        written = 0

        def advance(done: int) -> None:
            nonlocal written
            step = done * PLAIN_STEPS // total if total else 0
            if step > written:
                written = step
                self.write(f"{label}: {done:,} of {total:,}")

        return advance
