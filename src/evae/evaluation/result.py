"""The result of an evaluation: its numbers, printed, plotted, or written as a report."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from evae.evaluation.metrics.labels import METRIC_LABELS, cell_text, cells_text
from evae.evaluation.report.tables import EvaluationNumbers
from evae.evaluation.report.write import write_figures, write_report
from evae.evaluation.systems.baselines import MODEL, SPLIT_HALF


@dataclass(frozen=True)
class EvaluationResult(EvaluationNumbers):
    """What `evaluate` returns: the numbers of `EvaluationNumbers`, and ways to show them."""

    def table(self) -> Group:
        """All tables, for `rich.print`."""
        notes = [Text(f"· {note}", style="dim") for note in self.stamp["notes"]]
        return Group(*[_rich_table(title, rows, columns) for title, columns, rows in self.tables()], *notes)

    def print(self) -> None:
        """Print the tables to the terminal."""
        Console().print(self.table())

    def report(self, folder: str | Path) -> Path:
        """Write report.html, report.md, result.json and plots/ into a folder; returns the HTML file."""
        return write_report(self, Path(folder))

    def plots(self, folder: str | Path) -> list[Path]:
        """Write all plots as PNG into a folder and return their paths."""
        return write_figures(self, Path(folder))


def _rich_table(title: str, rows: list[tuple[str, dict[str, pd.Series]]], metrics: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", padding=(0, 1))
    table.add_column("system", no_wrap=True)
    for metric in metrics:
        table.add_column(METRIC_LABELS[metric].heading, justify="right", overflow="fold")
    table.add_column("cells real / gen.", justify="right", style="dim", overflow="fold")
    for system, values in rows:
        if system == SPLIT_HALF:
            table.add_section()
        style = "bold cyan" if system == MODEL else "green" if system == SPLIT_HALF else None
        table.add_row(system, *[cell_text(values.get(m)) for m in metrics], cells_text(values), style=style)
    return table
