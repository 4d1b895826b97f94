"""The numbers of an evaluation in the terminal: its tables, and the main ones as one table."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from evae.common.numbers import UNDEFINED, format_number
from evae.evaluation.metrics.facts import shown
from evae.evaluation.report.brief import verdict
from evae.evaluation.report.question import question
from evae.evaluation.report.scores import HEADINGS, TITLE, score_table
from evae.evaluation.report.tables import EvaluationNumbers, Shown, in_order
from evae.evaluation.systems.names import CEILING, INTERPOLATED, MODEL, SPLIT_HALF, TOKENIZER_ALONE

LIMITS = (TOKENIZER_ALONE, INTERPOLATED, CEILING, SPLIT_HALF)  # below the line
STYLES = {MODEL: "bold cyan", SPLIT_HALF: "green", TOKENIZER_ALONE: "cyan"}


def rich_table(shown: Shown) -> Table:
    """One table of an evaluation."""
    table = Table(title=shown.title, title_justify="left", title_style="bold", header_style="bold", padding=(0, 1))
    system, *metrics, cells = shown.headings
    table.add_column(system, no_wrap=True)
    for heading in metrics:
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column(cells, justify="right", style="dim", overflow="fold")
    names = [name for name, _ in shown.rows]
    for name, texts in shown.texts():
        if name in LIMITS and names[names.index(name) - 1] not in LIMITS:
            table.add_section()
        table.add_row(name, *texts, style=STYLES.get(name))
    return table


def turned_table(shown: Shown) -> Table:
    """One table with a row a metric and a column a system: many metrics fit a narrow terminal so."""
    table = Table(title=shown.title, title_justify="left", title_style="bold", header_style="bold", padding=(0, 1))
    _, *metrics, cells = shown.headings
    table.add_column("metric", no_wrap=True)
    for name, _ in shown.rows:
        table.add_column(name, justify="right", overflow="fold", style=STYLES.get(name))
    columns = [texts for _, texts in shown.texts()]
    for heading, *texts in zip([*metrics, cells], *columns, strict=True):
        table.add_row(heading, *[text.split(" ±")[0] for text in texts])
    return table


def main_tables(result: EvaluationNumbers) -> Group:
    """What the terminal shows: the main numbers as a table, the question, what beats the model; or vcc2026's tables."""
    if set(result.records["group"]) & {"vcc2026"}:
        return Group(*[turned_table(table) for table in result.tables()])
    found = verdict(result.summary())
    parts: list[Table | Text] = [summary_table(result), Text(question(result.comparison))]
    parts += [Text(found)] if found else []
    if set(result.records["group"]) & {"extended"}:
        parts += scores_shown(result)
    return Group(*parts)


def scores_shown(result: EvaluationNumbers) -> list[Table | Text]:
    """The main scores between controls as a table, and which metrics have none."""
    found = score_table(result.scores())
    table = Table(title=TITLE, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold underline")
    table.add_column(HEADINGS[0], no_wrap=True)
    for heading in HEADINGS[1:-1]:
        table.add_column(heading, justify="right", no_wrap=True, style="bold cyan" if heading == "score" else None)
    table.add_column(HEADINGS[-1], overflow="fold")
    for row in found.rows:
        table.add_row(*row)
    return [table, *([Text(found.note)] if found.note else [])]


def summary_table(result: EvaluationNumbers, reconstruction: EvaluationNumbers | None = None) -> Table:
    """The main metrics of every system as one table that fits a terminal.

    Of two protocols the robust one is shown.

    Args:
        result: the model beside its baselines.
        reconstruction: the real cells passed through the tokenizer; adds the row "tokenizer alone".
    """
    if reconstruction is not None:
        result = result.with_tokenizer_alone(reconstruction)
    scored = "extended" in set(result.records["group"])  # then another table has a row for each metric
    protocol = next((name for name in ("robust", "paper") if name in set(result.records["group"])), None)
    columns = [
        (table.group, table.level, metric)
        for table, metrics in shown("summary")
        if table.group not in ("robust", "paper") or table.group == protocol
        for metric in metrics
        if not (scored and table.group == "differential expression")
    ]
    values = _values(result)
    columns = [key for key in columns if any((key[0], key[1], key[2].name) == (g, v, m) for _, g, v, m in values)]
    systems = list(dict.fromkeys(system for system, *_ in values))
    systems.sort(key=in_order)
    title = "Beside the real held-out cells" + (f" (protocol {protocol})" if protocol else "")
    table = Table(title=title, title_justify="left")
    table.add_column("system", no_wrap=True)
    for *_, metric in columns:
        table.add_column(metric.heading, justify="right", no_wrap=True)
    for i, system in enumerate(systems):
        if system in LIMITS and systems[i - 1] not in LIMITS:
            table.add_section()
        texts = [_text(values.get((system, group, level, metric.name))) for group, level, metric in columns]
        table.add_row(system, *texts, style=STYLES.get(system))
    return table


def _values(result: EvaluationNumbers) -> dict[tuple[str, str, str, str], float]:
    """(system, group, level, metric) -> mean value; cell-eval's ceiling stands beside our metrics of these names."""
    keys = ["system", "group", "level", "metric"]
    values = result.summary().set_index(keys)["value"].to_dict()
    ceilings = {key: value for key, value in values.items() if key[0] == CEILING}
    for group in ("perturbation", "differential expression"):
        values |= {(system, group, *rest): value for (system, _, *rest), value in ceilings.items()}
    return values


def _text(value: float | None) -> str:
    return UNDEFINED if value is None else format_number(value)
