"""The report of an evaluation: its figures, one HTML file that carries them, the same in Markdown, the JSON."""

import base64
import html
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd

from evae.common.figures import DPI, look, save
from evae.evaluation.metrics.labels import BRIEF, METRIC_LABELS, cell_text, cells_text
from evae.evaluation.report.figures_cells import draw_cells, draw_top_genes, draw_umap
from evae.evaluation.report.figures_metrics import draw_metrics, draw_per_perturbation, draw_radar
from evae.evaluation.report.tables import EvaluationNumbers
from evae.evaluation.systems.baselines import MODEL, SPLIT_HALF

# group, level, metrics, title, file
METRIC_FIGURES = (
    (
        "robust",
        "pooled",
        ("fd", "mmd2_mix_biased", "w2"),
        "Distance between generated and real cells (robust, pooled)",
        "distances_robust.png",
    ),
    (
        "paper",
        "pooled",
        ("fd", "mmd2_mix_biased", "w2"),
        "Distance between generated and real cells (paper, pooled)",
        "distances_paper.png",
    ),
    (
        "perturbation",
        "pair",
        ("pearson_delta", "discrimination_l1", "mae"),
        "Perturbation effect on pseudobulks, mean over perturbations",
        "perturbation_metrics.png",
    ),
    (
        "differential expression",
        "pair",
        ("overlap_at_N", "pr_auc", "de_spearman_lfc_sig"),
        "Differential expression, mean over perturbations",
        "differential_expression.png",
    ),
    (
        "honesty",
        "pooled",
        ("variance_ratio", "classifier_auc", "correlation_error"),
        "Diversity and honesty",
        "honesty.png",
    ),
)


CAPTIONS = {
    "distances_robust.png": "Distances in the robust protocol. Dots are systems; the green line is what two "
    "halves of the real cells reach with as many cells.",
    "distances_paper.png": "Distances in the published protocol: components fitted on the compared cells.",
    "perturbation_metrics.png": "Perturbation effects on pseudobulks. The split half has half of the cells, "
    "so a good prediction may pass it.",
    "differential_expression.png": "Recovery of differentially expressed genes.",
    "honesty.png": "Diversity and honesty: a mean-collapsed or memorising model shows here.",
    "per_perturbation.png": "Correlation of the predicted with the real shift, perturbation by perturbation.",
    "radar.png": "All metrics on one scale, from the control copy to the real cells' own agreement.",
    "cells_pca.png": "Real and generated cells on principal components fitted elsewhere, and the shift of "
    "every perturbation's mean.",
    "cells_umap.png": "UMAP of real and generated cells together.",
    "top_genes.png": "The genes that move most under the strongest perturbations.",
}
CONTROL_COPY = "control copy"
NO_BASELINES = (MODEL, SPLIT_HALF, "mean-collapsed model")  # the last is made of the model's own cells
BRIEF_HEADS = ("metric", "model", "best baseline", "control copy", "real split half", "what it says")
READING = (
    "Lower is better where ↓ stands, higher where ↑, nearest to the number where → stands. Pooled values are "
    "means over seeds ± standard deviation; others are means over perturbations, with the number of defined "
    "ones in brackets where some are not. “Real split half” is what one half of the real cells scores "
    "against the other: the best to be hoped for with as many cells. Where it has fewer cells than the model, as in "
    "pseudobulks and differential expression, a good model may pass it."
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
p.lead { color: #555; margin-top: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .8rem .28rem 0; text-align: right; white-space: nowrap; }
tr { border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; }
th { color: #555; font-weight: 600; white-space: normal; vertical-align: bottom; }
tr.model td { color: #D55E00; font-weight: 700; }
tr.floor td { color: #00795A; border-top: 2px solid #009E73; }
td.n { color: #888; }
table.brief td:nth-child(2) { color: #D55E00; font-weight: 700; }
table.brief td:nth-child(3) { white-space: normal; }
table.brief td:nth-child(5) { color: #00795A; }
table.brief :is(th, td):last-child { text-align: left; white-space: normal; min-width: 16rem; color: #555; }
figure { margin: 1.2rem 0 2rem; overflow-x: auto; }
figure img { max-width: 100%; }
@media (max-width: 45rem) { figure img { max-width: none; } figcaption { position: sticky; left: 0; } }
figcaption { color: #555; font-size: .86rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .86rem; }
dt { color: #666; }
dd { margin: 0; overflow-wrap: anywhere; }
"""


def write_report(result: EvaluationNumbers, folder: Path) -> Path:
    """Write report.html, report.md, result.json and plots/; returns the path of report.html."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = write_figures(result, folder / "plots")
    result.to_json(folder / "result.json")
    (folder / "report.md").write_text(markdown(result, figures))
    page = folder / "report.html"
    page.write_text(html_page(result, figures))
    return page


def write_figures(result: EvaluationNumbers, folder: Path) -> list[Path]:
    """Draw every figure that the result has numbers for; returns the paths of the PNG files."""
    summary = result.summary()
    written: list[Path] = []
    with look():
        for group, level, metrics, title, name in METRIC_FIGURES:
            part = summary[(summary["group"] == group) & (summary["level"] == level)]
            figure = None if part.empty else draw_metrics(part, metrics, title)
            if figure is not None:
                written.append(save(figure, folder / name))
        if (result.records["group"] == "perturbation").any():
            written.append(save(draw_per_perturbation(result.records), folder / "per_perturbation.png"))
        radar = draw_radar(summary)
        if radar is not None:
            written.append(save(radar, folder / "radar.png"))
        written.append(save(draw_cells(result.comparison), folder / "cells_pca.png"))
        umap = draw_umap(result.comparison)
        if umap is not None:
            written.append(save(umap, folder / "cells_umap.png"))
        written.append(save(draw_top_genes(result.comparison), folder / "top_genes.png"))
    return written


def brief(summary: pd.DataFrame) -> list[list[str]]:
    """The main numbers: metric, model, best baseline, control copy, real split half, and what the number says."""
    found = []
    for (group, level, metric), meaning in BRIEF.items():
        part = summary[(summary["group"] == group) & (summary["level"] == level) & (summary["metric"] == metric)]
        rows = {row["system"]: row for _, row in part.iterrows()}
        if MODEL not in rows or part["value"].isna().all():
            continue
        values = {s: r["value"] for s, r in rows.items() if s not in NO_BASELINES and not math.isnan(r["value"])}
        best = _best(values, METRIC_LABELS[metric].best)
        shown = [cell_text(rows.get(s)) for s in (MODEL, CONTROL_COPY, SPLIT_HALF)]
        named = f"{cell_text(rows[best])} ({best})" if best else "–"
        found.append([METRIC_LABELS[metric].heading, shown[0], named, *shown[1:], meaning])
    return found


def _best(values: dict[str, float], goal: str) -> str | None:
    """The system of the best value; `goal` is "low", "high" or a number."""
    if not values:
        return None
    if goal in ("low", "high"):
        return (min if goal == "low" else max)(values, key=lambda s: values[s])
    return min(values, key=lambda s: abs(values[s] - float(goal)))


def markdown(result: EvaluationNumbers, figures: list[Path]) -> str:
    """The report in Markdown; figures are linked as plots/NAME."""
    lines = ["# Evaluation of predicted cells", "", _lead(result.stamp), "", "## In brief", ""]
    lines += [_row(list(BRIEF_HEADS)), _row(["---", *["---:"] * 4, "---"])]
    lines += [_row(row) for row in brief(result.summary())]
    lines += ["", READING]
    for title, metrics, rows in result.tables():
        heading = ["system", *[METRIC_LABELS[m].heading for m in metrics], "cells real / gen."]
        lines += ["", f"## {title}", "", _row(heading), _row(["---", *["---:"] * (len(heading) - 1)])]
        for name, values in rows:
            shown = f"**{name}**" if name == MODEL else name
            lines.append(_row([shown, *_numbers(metrics, values)]))
    lines += ["", "## Figures"]
    for path in figures:
        lines += ["", f"![{CAPTIONS[path.name]}](plots/{path.name})", "", f"*{CAPTIONS[path.name]}*"]
    lines += ["", "## How it was made", ""]
    lines += [f"* {name}: {value}" for name, value in _provenance(result.stamp)]
    return "\n".join(lines) + "\n"


def html_page(result: EvaluationNumbers, figures: list[Path]) -> str:
    """The report as one HTML page that needs no other file."""
    e = html.escape
    body = [f"<h1>Evaluation of predicted cells</h1><p class=lead>{e(_lead(result.stamp))}</p><h2>In brief</h2>"]
    body.append(f"<div class=wide><table class=brief><tr>{''.join(f'<th>{e(h)}</th>' for h in BRIEF_HEADS)}</tr>")
    for row in brief(result.summary()):
        body.append(f"<tr>{''.join(f'<td>{e(text)}</td>' for text in row)}</tr>")
    body.append(f"</table></div><p>{e(READING)}</p>")
    for title, metrics, rows in result.tables():
        heads = ["system", *[METRIC_LABELS[m].heading for m in metrics], "cells real / gen."]
        head = "".join(f"<th>{re.sub(' (?=[↑↓→])', '&nbsp;', e(h))}</th>" for h in heads)
        body.append(f"<h2>{e(title)}</h2><div class=wide><table><tr>{head}</tr>")
        for name, values in rows:
            kind = {MODEL: " class=model", SPLIT_HALF: " class=floor"}.get(name, "")
            *numbers, n = [e(text) for text in _numbers(metrics, values)]
            cells = "".join(f"<td>{text}</td>" for text in [e(name), *numbers])
            body.append(f"<tr{kind}>{cells}<td class=n>{n}</td></tr>")
        body.append("</table></div>")
    body.append("<h2>Figures</h2>")
    for path in figures:
        data = base64.b64encode(path.read_bytes()).decode()
        caption = e(CAPTIONS[path.name])
        image = f'<img alt="{caption}" width={_shown_width(path)} src="data:image/png;base64,{data}">'
        body.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    facts = "".join(f"<dt>{e(name)}</dt><dd>{e(value)}</dd>" for name, value in _provenance(result.stamp))
    body.append(f"<h2>How it was made</h2><dl>{facts}</dl>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<title>Evaluation of predicted cells</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _shown_width(path: Path) -> int:
    """Pixels at which a figure's letters have the size that they were drawn for; the PNG's own stand in bytes 16-19."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(20)[16:]) * 96 // DPI


def _lead(stamp: dict[str, Any]) -> str:
    n = stamp["n_cells"]
    return (
        f"{n['predicted']:,} predicted against {n['real']:,} real cells, {stamp['n_pairs']} pairs of "
        f"cell type and perturbation, {stamp['n_genes']:,} genes; suite {stamp['settings']['suite']}."
    )


def _numbers(metrics: tuple[str, ...], values: dict[str, pd.Series]) -> list[str]:
    return [*[cell_text(values.get(metric)) for metric in metrics], cells_text(values)]


def _provenance(stamp: dict[str, Any]) -> list[tuple[str, str]]:
    """What a reader needs to run it again, as (name, value)."""
    settings, n = stamp["settings"], stamp["n_cells"]
    return [
        ("created", f"{stamp['created']}, in {stamp['seconds']} s"),
        ("seeds", ", ".join(str(seed) for seed in settings["seeds"])),
        ("settings", "; ".join(f"{k} = {v}" for k, v in settings.items() if k != "seeds")),
        ("cells", "; ".join(f"{name} {count:,}" for name, count in n.items())),
        ("versions", "; ".join(f"{name} {version}" for name, version in stamp["versions"].items())),
        *[(f"sha256 of {name} cells", value) for name, value in stamp["sha256"].items()],
        *[("note", note) for note in stamp["notes"]],
    ]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
