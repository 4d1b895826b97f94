"""The report of the reversion benchmark: one HTML file that carries its figures, JSON, CSV and PNG."""

import base64
import html
from pathlib import Path

from evae.evaluation.report.write import STYLE
from evae.reversion.figures import write_figures
from evae.reversion.numbers import READING, ReversionNumbers

N_TOP = 25
CAPTIONS = {
    "enrichment.png": "Positive controls recovered along the ranking; the grey band holds 95 % of random rankings.",
    "selectivity.png": "Distance to resting controls without and with the stress. Below the dashed line the knock-down "
    "brings stressed cells nearer to rest than resting ones are; the blue line is where stressed controls stand. "
    "Vermillion: positive controls.",
}
_MORE = "td.positive { color: #D55E00; font-weight: 700; } table.top td { text-align: left; }"


def write_report(result: ReversionNumbers, folder: Path) -> Path:
    """Write report.html, result.json, rankings.csv and plots/; returns the path of report.html."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = write_figures(result, folder / "plots")
    result.to_json(folder / "result.json")
    result.rankings().to_csv(folder / "rankings.csv", index=False)
    page = folder / "report.html"
    page.write_text(html_page(result, figures))
    return page


def html_page(result: ReversionNumbers, figures: list[Path]) -> str:
    """The report as one HTML page that needs no other file."""
    e = html.escape
    n = result.stamp["n_cells"]
    lead = (
        f"{result.stamp['n_targets']:,} targets, {n['treated']:,} cells {result.names.treated}, {n['untreated']:,} "
        f"{result.names.untreated}; compared with {result.names.untreated} {result.names.anchor}."
    )
    heads, rows = result.cells()
    body = [f"<h1>Reversion benchmark</h1><p class=lead>{e(lead)}</p><p>{e(READING)}</p>"]
    body.append("<div class=wide><table><tr>" + "".join(f"<th>{e(h)}</th>" for h in heads) + "</tr>")
    for row in rows:
        body.append("<tr>" + "".join(f"<td>{e(text)}</td>" for text in row) + "</tr>")
    body.append("</table></div>")
    for path in figures:
        data, caption = base64.b64encode(path.read_bytes()).decode(), e(CAPTIONS[path.name])
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        body.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    body.append(_top(result))
    facts = "".join(f"<dt>{e(name)}</dt><dd>{e(value)}</dd>" for name, value in _provenance(result))
    body.append(f"<h2>How it was made</h2><dl>{facts}</dl>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Reversion benchmark</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}{_MORE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _top(result: ReversionNumbers) -> str:
    """The first targets of every method beside one another; positives in colour."""
    e, top, positives = html.escape, result.top(N_TOP), set(result.names.positives)
    heads = "".join(f"<th>{e(str(c))}</th>" for c in top.columns)
    lines = [f"<h2>First {len(top)} targets</h2><div class=wide><table class=top><tr><th>rank</th>{heads}</tr>"]
    for i, row in enumerate(top.itertuples(index=False), start=1):
        cells = []
        for target in row:
            name = target if isinstance(target, str) else ""
            cells.append(f"<td{' class=positive' if name in positives else ''}>{e(name)}</td>")
        lines.append(f"<tr><td>{i}</td>{''.join(cells)}</tr>")
    return "".join(lines) + "</table></div>"


def _provenance(result: ReversionNumbers) -> list[tuple[str, str]]:
    s = result.stamp
    skipped = [(f"{name}, cells not embedded", f"{m.place.n_skipped:,}") for name, m in result.methods.items()
               if m.place.n_skipped]  # fmt: skip
    return [
        ("data", s["data"]),
        ("created", f"{s['created']}, in {s['seconds']} s"),
        ("cells", "; ".join(f"{name} {count:,}" for name, count in s["n_cells"].items())),
        ("positive controls", ", ".join(result.names.positives)),
        ("control targets", ", ".join(result.names.controls)),
        *[(name, f"{m.place.about}; {m.place.width} values") for name, m in result.methods.items()],
        *skipped,
        ("settings", "; ".join(f"{k} = {v}" for k, v in s["settings"].items())),
        ("versions", "; ".join(f"{name} {v}" for name, v in s["versions"].items())),
    ]
