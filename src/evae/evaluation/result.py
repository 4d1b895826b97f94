"""The result of an evaluation: its numbers, printed, plotted, or written as a report."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

from rich.console import Console, Group
from rich.text import Text

from evae.common.html import html_table
from evae.common.messages import number_of
from evae.evaluation.report.brief import verdict
from evae.evaluation.report.tables import EvaluationNumbers
from evae.evaluation.report.terminal import rich_table
from evae.evaluation.systems.names import MODEL


@dataclass(frozen=True)
class EvaluationResult(EvaluationNumbers):
    """What `evaluate` returns: the numbers of `EvaluationNumbers`, and ways to show them."""

    def table(self) -> Group:
        """All tables, for `rich.print`."""
        notes = [Text(f"· {note}", style="dim") for note in self.stamp["notes"]]
        found = verdict(self.summary())
        return Group(*[rich_table(table) for table in self.tables()], *([Text(found)] if found else []), *notes)

    def __repr__(self) -> str:
        found = number_of(len(self.records), "record")
        return f"EvaluationResult({found}; print() shows the tables, report(folder) writes them)"

    def _repr_html_(self) -> str:
        """All tables, for notebooks."""
        tables = [
            html_table(table.title, table.headings, [(system, *texts) for system, texts in table.texts()], (MODEL,))
            for table in self.tables()
        ]
        found = verdict(self.summary())
        return "".join([*tables, f"<p>{escape(found)}</p>" if found else ""])

    def print(self) -> None:
        """Print the tables to the terminal."""
        Console().print(self.table())

    def report(self, folder: str | Path) -> Path:
        """Write report.html, report.md, result.json, CSV files and plots/ into a folder; returns the HTML file."""
        from evae.evaluation.report.write import write_report  # matplotlib takes memory and a second

        return write_report(self, Path(folder))

    def plots(self, folder: str | Path) -> list[Path]:
        """Write all plots as PNG into a folder and return their paths."""
        from evae.evaluation.report.plots import write_plots

        return [path for path, _ in write_plots(self, Path(folder))]
