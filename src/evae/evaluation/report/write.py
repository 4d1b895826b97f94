"""The report of an evaluation: its plots, one HTML file that carries them, the same in Markdown, the JSON."""

from collections.abc import Iterable
from pathlib import Path

from evae.common.files import write_text
from evae.common.page import Picture, render
from evae.evaluation.report import scores as scores_text
from evae.evaluation.report.brief import HEADINGS, READING, brief, explained, lead, provenance, verdict
from evae.evaluation.report.pairs import PAGES_NOTE, PAGES_TITLE, PairPage, pair_table, write_pair_pages
from evae.evaluation.report.plots import write_plots
from evae.evaluation.report.question import question, standing
from evae.evaluation.report.tables import EvaluationNumbers
from evae.evaluation.systems.names import MODEL, SPLIT_HALF

TITLE = "Evaluation of predicted cells"


def write_report(numbers: EvaluationNumbers, folder: Path) -> Path:
    """Write report.html, report.md, result.json, CSV files and plots/; returns the path of report.html."""
    plots = write_plots(numbers, folder / "plots")
    pages = write_pair_pages(numbers, folder / "plots")
    numbers.write_numbers(folder)
    write_text(folder / "report.md", markdown(numbers, plots, pages))
    return write_text(folder / "report.html", html_page(numbers, plots, pages))


def html_page(numbers: EvaluationNumbers, plots: list[tuple[Path, str]], pages: list[PairPage]) -> str:
    """The report as one HTML page that needs no other file."""
    return render(
        "evaluation/report/report.html",
        title=TITLE,
        lead=lead(numbers.stamp),
        question=question(numbers.comparison),
        standing=standing(numbers.summary()),
        headings=HEADINGS,
        brief=brief(numbers.summary()),
        verdict=verdict(numbers.summary()),
        reading=READING,
        systems=explained(numbers.summary()),
        scores=scores_of(numbers),
        scores_title=scores_text.TITLE,
        scores_headings=scores_text.HEADINGS,
        scores_explained=scores_text.EXPLAINED,
        tables=numbers.tables(),
        classes={MODEL: "model", SPLIT_HALF: "floor"},
        pictures=[Picture.read(path, caption) for path, caption in plots],
        pairs=pair_table(numbers),
        pages_title=PAGES_TITLE,
        pages_note=PAGES_NOTE,
        pages=[page._asdict() | {"picture": Picture.read(page.plot, page.caption)} for page in pages],
        facts=provenance(numbers.stamp),
    )


def scores_of(numbers: EvaluationNumbers) -> scores_text.ScoreTable | None:
    """All scores between controls, of the suites that calibrate them; None of others."""
    if "extended" not in set(numbers.records["group"]):
        return None
    return scores_text.score_table(numbers.scores(), short=False)


def markdown(numbers: EvaluationNumbers, plots: list[tuple[Path, str]], pages: list[PairPage]) -> str:
    """The report in Markdown; plots are linked as plots/NAME."""
    lines = [f"# {TITLE}", "", lead(numbers.stamp), "", "## In brief", ""]
    lines += [question(numbers.comparison), "", " ".join(standing(numbers.summary())), ""]
    lines += [_line(HEADINGS), _line(["---", *["---:"] * 4, "---"])]
    lines += [_line(row) for row in brief(numbers.summary())]
    if found := verdict(numbers.summary()):
        lines += ["", found]
    lines += ["", READING, "", "## The systems", ""]
    lines += [f"* {name}: {meaning}" for name, meaning in explained(numbers.summary())]
    if (scores := scores_of(numbers)) is not None:
        lines += ["", f"## {scores_text.TITLE}", "", scores_text.EXPLAINED, "", _line(scores_text.HEADINGS)]
        lines += [_line(["---", *["---:"] * 4, "---"]), *[_line(row) for row in scores.rows], "", scores.note]
    for table in numbers.tables():
        rule = ["---", *["---:"] * (len(table.headings) - 1)]
        lines += ["", f"## {table.title}", "", _line(table.headings), _line(rule)]
        for name, texts in table.texts():
            lines.append(_line([f"**{name}**" if name == MODEL else name, *texts]))
    lines += ["", "## Figures"]
    for path, caption in plots:
        lines += ["", f"![{caption}](plots/{path.name})", "", f"*{caption}*"]
    if pages:
        lines += ["", f"## {PAGES_TITLE}", "", PAGES_NOTE]
    for page in pages:
        lines += ["", f"### {page.title}", "", f"![{page.caption}](plots/{page.plot.name})", ""]
        lines += [_line(page.headings), _line(["---", *["---:"] * (len(page.headings) - 1)])]
        lines += [_line([system, *texts]) for system, texts in page.rows]
    lines += ["", "## How it was made", ""]
    lines += [f"* {name}: {value}" for name, value in provenance(numbers.stamp)]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
