"""A study's results for people: a Markdown table with baselines and floor, a CSV of all numbers, two plots."""

from dataclasses import asdict
from pathlib import Path

import pandas as pd
import yaml

from evae.common.figures import look, save
from evae.common.files import write_text
from evae.common.messages import number_of
from evae.common.numbers import UNDEFINED, format_number
from evae.evaluation.metrics.facts import Metric, MetricTable, shown
from evae.evaluation.systems.names import SPLIT_HALF, TOKENIZER_ALONE
from evae.study.compare import paired_tests
from evae.study.figures import plot_head_axis, plot_radars
from evae.study.heads import RANKS, head_ranks, rank_lines
from evae.study.over_splits import TESTS, over_splits, test_lines
from evae.study.plan import Study
from evae.study.questions import question_lines
from evae.study.results import Results
from evae.study.splits import as_file_name

READING = (
    "Values of models are means over training seeds ± standard deviation, those of baselines and of the real split "
    "half means over draws. Lower is better where ↓ stands, higher where ↑, nearest to the number where → stands. "
    "“Control copy” is what a model reaches that ignores the perturbation, “real split half” what real cells reach, "
    "“tokenizer alone” what the held-out cells keep when passed through the tokenizer. Loss, codes and perplexity are "
    "those of a tokenizer on validation cells; losses of different heads are in different units."
)


def write_study(study: Study, results: Results, leaks: dict[str, list[str]], out: Path) -> None:
    """Write study.md, study.csv, pairs.csv, tests.csv and plots/ into `out`.

    Args:
        study: what was asked for.
        results: from `read_results`, of all splits; may be incomplete.
        leaks: of every split what stands on both sides; "" is the name of a single split.
        out: the study's folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    numbers, tests = results.numbers, paired_tests(results.pairs)
    for name, frame in (("study", numbers), ("pairs", results.pairs), ("tests", tests)):
        write_text(out / f"{name}.csv", frame.to_csv(index=False))
    figures = []
    with look():
        for split in dict.fromkeys(numbers["split"]):
            part = numbers[numbers["split"] == split]
            more = f"-{as_file_name(split)}" if split else ""
            for name, figure in (("radar", plot_radars(part)), ("heads", plot_head_axis(part))):
                if figure is not None:
                    figures.append(save(figure, out / "plots" / f"{name}{more}.png"))
    places = [f"plots/{path.name}" for path in figures]
    write_text(out / "study.md", markdown(study, numbers, tests, leaks, places, question_lines(results.pairs)))


def markdown(
    study: Study,
    numbers: pd.DataFrame,
    tests: pd.DataFrame,
    leaks: dict[str, list[str]],
    figures: list[str],
    questions: list[str],
) -> str:
    """The study as Markdown: all systems, means over heads and over systems, and what holds over splits and pairs."""
    splits = list(leaks)
    title = (
        f"# Study of {Path(study.dataset).name}" if splits == [""] else f"# Study of {number_of(len(splits), 'split')}"
    )
    lines = [title, "", READING]
    tested = ["", "## Paired tests", "", TESTS, "", *test_lines(tests)] if len(tests) else []
    if splits != [""] and len(numbers):
        lines += over_splits(numbers) + tested
    for split, sentences in leaks.items():
        part = numbers[numbers["split"] == split]
        lines += _of_split(part, split) if len(part) or not split else []
        about = f"Caution, {split}" if split else "Caution"
        lines += [line for sentence in sentences for line in ("", f"{about}: {sentence}.")]
    lines += questions + (tested if splits == [""] else [])
    if len(numbers) and len(ranks := head_ranks(numbers)):
        lines += ["", "## Ranks of heads", "", RANKS, "", *rank_lines(ranks)]
    lines += ["", "## Plots"] if figures else []
    for path in figures:
        lines += ["", f"![{path}]({path})"]
    settings = yaml.safe_dump(asdict(study), sort_keys=False).rstrip()
    lines += ["", "## What was asked for", "", "```yaml", settings, "```"]
    return "\n".join(lines) + "\n"


def _of_split(numbers: pd.DataFrame, split: str) -> list[str]:
    models = numbers[numbers["tokenizer"].notna()]
    lines = ["", f"## {split}: all systems" if split else "## All systems", "", *table(numbers, ["system", "head"])]
    for title, axis in (("Systems, mean over heads", "system"), ("Heads, mean over systems", "head")):
        if models["head"].nunique() > 1 and models[axis].nunique() > 1 and models["prior"].notna().any():
            heading = f"## {split}: {title.lower()}" if split else f"## {title}"
            lines += ["", heading, "", *table(_complete(models), [axis])]
    return lines


def table(numbers: pd.DataFrame, rows: list[str]) -> list[str]:
    """Lines of a Markdown table with one row for every value of `rows`; baselines follow, the floor comes last."""
    there = set(zip(numbers["group"], numbers["level"], strict=True))
    columns = [
        (table, metric)
        for table, metrics in shown("study")
        for metric in metrics
        if (table.group, table.level) in there
    ]
    heading = [*rows, *(_heading(*column) for column in columns), "seeds"]
    lines = [_line(heading), _line(["---"] * len(rows) + ["---:"] * (len(heading) - len(rows)))]
    labelled = numbers.assign(**{name: numbers[name].fillna("") for name in rows})
    groups = list(dict.fromkeys(labelled[rows].itertuples(index=False, name=None)))
    floor = [g for g in groups if g[0] == SPLIT_HALF]
    alone = [g for g in groups if str(g[0]).endswith(TOKENIZER_ALONE)]
    models = [g for g in groups if g not in alone and _of(labelled, rows, g)["tokenizer"].notna().any()]
    others = [g for g in groups if g not in [*models, *alone, *floor]]
    for group in [*models, *alone, *others, *floor]:
        part = _of(labelled, rows, group)
        texts = [_text(part, *column) for column in columns]
        seeds = part["seed"].nunique()
        lines.append(_line([*map(str, group), *texts, str(seeds) if seeds else UNDEFINED]))
    return lines


def _of(numbers: pd.DataFrame, rows: list[str], values: tuple[str, ...]) -> pd.DataFrame:
    chosen = pd.Series(True, index=numbers.index)
    for name, value in zip(rows, values, strict=True):
        chosen &= numbers[name] == value
    return numbers[chosen]


def _text(part: pd.DataFrame, table: MetricTable, metric: Metric) -> str:
    """Mean ± standard deviation over seeds, of means over all else."""
    of_table = (part["group"] == table.group) & (part["level"] == table.level)
    found = part[of_table & (part["metric"] == metric.name)]
    if found.empty:
        return UNDEFINED
    if found["seed"].isna().all():  # a baseline
        return format_number(float(found["value"].iloc[0]))
    by_seed = found.groupby("seed")["value"].mean().dropna()
    if by_seed.empty:
        return UNDEFINED
    text = format_number(float(by_seed.mean()))
    return f"{text} ±{format_number(float(by_seed.std()))}" if len(by_seed) > 1 else text


def _complete(models: pd.DataFrame) -> pd.DataFrame:
    """Priors only, and only seeds for which every system has every head: else a mean would compare unlike things."""
    priors = models[models["prior"].notna()]
    wanted = priors[["system", "head"]].drop_duplicates().shape[0]
    done = priors.groupby("seed")[["system", "head"]].apply(lambda part: len(part.drop_duplicates()) == wanted)
    return priors[priors["seed"].isin(done.index[done])]


def _heading(table: MetricTable, metric: Metric) -> str:
    if table.group == "paper":
        return f"{metric.heading} (paper)"
    return f"{metric.heading} by perturbation" if (table.group, table.level) == ("robust", "pair") else metric.heading


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
