"""The result of the reversion benchmark: its numbers, printed or written as a report."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from evae.common.html import html_table
from evae.reversion.numbers import ReversionNumbers
from evae.reversion.report import write_report


@dataclass(frozen=True)
class ReversionResult(ReversionNumbers):
    """What `run` returns: the numbers of `ReversionNumbers`, and ways to show them."""

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        return html_table("Reversion", *self.cells())

    def print(self) -> None:
        """Print the table and the top ten to the terminal."""
        Console().print(self.rich())

    def rich(self, n_top: int = 10) -> Group:
        """The table and the first targets, for `rich.print`."""
        heads, rows = self.cells()
        table = Table(title="Reversion", title_justify="left", title_style="bold", header_style="bold")
        for i, head in enumerate(heads):
            table.add_column(head, justify="left" if i == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        positives = set(self.names.positives)
        lines = [Text("")]
        for name, column in self.top(n_top).items():
            line = Text(f"{name}: ", style="bold")
            for i, target in enumerate(column.dropna()):
                line.append(
                    (", " if i else "") + str(target), style="bold green" if target in positives else "not bold"
                )
            lines.append(line)
        notes = [Text(note, style="yellow") for note in self.notes()]
        return Group(table, *notes, *lines)

    def report(self, folder: str | Path) -> Path:
        """Write report.html, result.json, rankings.csv and plots/ into a folder; returns the HTML file."""
        return write_report(self, Path(folder))
