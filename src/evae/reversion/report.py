"""The report of the reversion benchmark: one HTML file that carries its figures, JSON, CSV and PNG."""

from pathlib import Path

from evae.common.files import write_text
from evae.common.messages import number_of
from evae.common.page import Picture, render
from evae.reversion.figures import write_figures
from evae.reversion.numbers import READING, ReversionNumbers

N_TOP = 25
CAPTIONS = {
    "enrichment.png": "Positive controls recovered along the ranking; the grey band holds 95 % of random rankings.",
    "selectivity.png": "Distance to resting controls without and with the stress. Below the dashed line the knock-down "
    "brings stressed cells nearer to rest than resting ones are; the blue line is where stressed controls stand. "
    "Vermillion: positive controls.",
}


def write_report(numbers: ReversionNumbers, folder: Path) -> Path:
    """Write report.html, result.json, rankings.csv and plots/; returns the path of report.html."""
    plots = write_figures(numbers, folder / "plots")
    numbers.to_json(folder / "result.json")
    write_text(folder / "rankings.csv", numbers.rankings().to_csv(index=False))
    return write_text(folder / "report.html", html_page(numbers, plots))


def html_page(numbers: ReversionNumbers, plots: list[Path]) -> str:
    """The report as one HTML page that needs no other file."""
    n, names = numbers.stamp["n_cells"], numbers.names
    headings, rows = numbers.cells()
    top = numbers.top(N_TOP)
    return render(
        "reversion/report.html",
        title="Reversion benchmark",
        lead=f"{number_of(numbers.stamp['n_targets'], 'target')}, {number_of(n['treated'], 'cell')} {names.treated}, "
        f"{n['untreated']:,} {names.untreated}; compared with {names.untreated} {names.anchor}.",
        reading=READING,
        headings=headings,
        rows=rows,
        pictures=[Picture.read(path, CAPTIONS[path.name]) for path in plots],
        methods=list(top.columns),
        top=top.fillna("").to_numpy().tolist(),
        positives=set(names.positives),
        facts=_provenance(numbers),
    )


def _provenance(numbers: ReversionNumbers) -> list[tuple[str, str]]:
    s = numbers.stamp
    skipped = [(f"{name}, cells not embedded", f"{m.place.n_skipped:,}") for name, m in numbers.methods.items()
               if m.place.n_skipped]  # fmt: skip
    return [
        ("data", s["data"]),
        ("created", f"{s['created']}, in {s['seconds']} s"),
        ("cells", "; ".join(f"{name} {count:,}" for name, count in s["n_cells"].items())),
        ("positive controls", ", ".join(numbers.names.positives)),
        ("control targets", ", ".join(numbers.names.controls)),
        *[(name, f"{m.place.about}; {m.place.width} values") for name, m in numbers.methods.items()],
        *skipped,
        ("settings", "; ".join(f"{k} = {v}" for k, v in s["settings"].items())),
        ("versions", "; ".join(f"{name} {v}" for name, v in s["versions"].items())),
    ]
