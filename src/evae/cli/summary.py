"""The evaluation as one table that fits a terminal; its report holds the others."""

import math

from rich.table import Table

from evae.evaluation import EvaluationResult

MODEL, SPLIT_HALF, TOKENIZER = "model", "real split half", "tokenizer alone"
COLUMNS = {  # (level, metric): heading
    ("pooled", "fd"): "FD ↓",
    ("pooled", "mmd2_mix_biased"): "MMD² ↓",
    ("pooled", "w2"): "W2 ↓",
    ("pair", "pearson_delta"): "Pearson Δ ↑",
    ("pair", "overlap_at_N"): "DE overlap ↑",
}


def summary_table(result: EvaluationResult, reconstruction: EvaluationResult | None = None) -> Table:
    """FD, MMD2 and W2 (pooled), Pearson delta and overlap of DE genes (means over perturbations) of every system.

    Args:
        result: the model beside its baselines.
        reconstruction: the real cells passed through the tokenizer; adds the row "tokenizer alone".
    """
    rows = _values(result)
    if reconstruction is not None:
        rows[TOKENIZER] = _values(reconstruction)[MODEL]
    last = [s for s in (TOKENIZER, SPLIT_HALF) if s in rows]
    order = [MODEL, *(s for s in rows if s not in (MODEL, *last)), *last]
    groups = set(result.records["group"])
    protocol = next((f" (protocol {name})" for name in ("robust", "paper") if name in groups), "")
    table = Table(title=f"Beside the real held-out cells{protocol}", title_justify="left")
    table.add_column("system", no_wrap=True)
    shown = [key for key in COLUMNS if any(key in values for values in rows.values())]
    for key in shown:
        table.add_column(COLUMNS[key], justify="right", no_wrap=True)
    for system in order:
        if last and system == last[0]:
            table.add_section()
        style = {MODEL: "bold cyan", SPLIT_HALF: "green", TOKENIZER: "cyan"}.get(system)
        table.add_row(system, *[_text(rows[system].get(key)) for key in shown], style=style)
    return table


def _values(result: EvaluationResult) -> dict[str, dict[tuple[str, str], float]]:
    """system -> (level, metric) -> mean value; of two protocols the robust one."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    summary = result.summary()
    for group in ("paper", "robust", "perturbation", "differential expression"):
        for row in summary[summary["group"] == group].to_dict("records"):
            key = (str(row["level"]), str(row["metric"]))
            if key in COLUMNS:
                found.setdefault(str(row["system"]), {})[key] = float(row["value"])
    return found


def _text(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
