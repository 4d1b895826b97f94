"""The numbers of the reversion benchmark, as tables and as JSON."""

import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evae.common.files import write_json
from evae.common.numbers import UNDEFINED, plain
from evae.reversion.enrichment import Enrichment
from evae.reversion.names import ScreenNames
from evae.reversion.screen import Screen
from evae.reversion.sums import Place

FORMAT_VERSION = 1
HEADINGS = {
    "auc": "enrichment AUC ↑",
    "selectivity_auc": "selectivity AUC ↑",
    "null_auc": "AUC of null screens →0.5",
    "null_selectivity_auc": "selectivity AUC of null screens →0.5",
    "ch_condition": "CH condition ↑",
    "ch_target_treated": "CH target, treated ↑",
    "ch_target_untreated": "CH target, untreated ↑",
    "spearman": "Spearman ↑",
    "overlap_10": "overlap@10 ↑",
    "overlap_25": "overlap@25 ↑",
}
READING = (
    "AUC: area under recovered positive controls against rank, 0.5 is chance; in brackets the 95 % bootstrap interval "
    "over the positives and the one-sided permutation p-value. Selectivity: how much nearer to rest the treated arm "
    "is than the untreated one. Null screens: the same where targets were shuffled among the cells of each arm, mean "
    "± standard deviation and highest of all shuffles. CH: Calinski-Harabasz score over its mean under shuffled "
    "labels, 1 is chance. Spearman and overlap: agreement with the reference ranking."
)


@dataclass(frozen=True)
class MethodResult:
    """One embedding's part of the benchmark.

    Attributes:
        place: centroids and separation.
        ranking: one row a target, best first, see `ranking.rank_targets`.
        enrichment: of the positives in the ranking by distance.
        selectivity: of the positives in the ranking by selectivity.
        controls: distance of the treated cells of each control target: where unreverted cells stand.
        agreement: with the reference ranking; empty without one.
        null: AUCs of screens with shuffled targets, `auc` and `selectivity_auc`, (shuffles,) each.
    """

    place: Place
    ranking: pd.DataFrame
    enrichment: Enrichment
    selectivity: Enrichment
    controls: dict[str, float]
    agreement: dict[str, float]
    null: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        return self.place.name


@dataclass(frozen=True)
class ReversionNumbers:
    """What the benchmark found, without its report.

    Attributes:
        methods: by name, the model's embeddings first.
        names: of the screen.
        reference: the ranking compared with, best first; None without one.
        stamp: data, settings, versions, sizes.
    """

    methods: dict[str, MethodResult]
    names: ScreenNames
    reference: list[str] | None
    stamp: dict[str, Any]

    def table(self) -> pd.DataFrame:
        """All numbers, one row a method."""
        return pd.DataFrame({name: _row(method) for name, method in self.methods.items()}).T.rename_axis("method")

    def rankings(self) -> pd.DataFrame:
        """The rankings of all methods below one another, with a column `method`."""
        parts = [m.ranking.reset_index().assign(method=name) for name, m in self.methods.items()]
        frame = pd.concat(parts, ignore_index=True)
        return frame[["method", *[c for c in frame.columns if c != "method"]]]

    def top(self, n: int = 25) -> pd.DataFrame:
        """The first `n` targets of every method, one column a method."""
        return pd.DataFrame(
            {name: pd.Series(list(m.ranking.index[:n]), dtype=object) for name, m in self.methods.items()},
        ).rename_axis("rank")

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """The table as texts: headings, and one row a method."""
        shown = [c for c in HEADINGS if self.reference or c not in ("spearman", "overlap_10", "overlap_25")]
        rows = []
        for name, method in self.methods.items():
            values = _row(method)
            texts = {c: _text(values.get(c, math.nan)) for c in shown}
            texts |= {f"null_{kind}": _null_text(aucs) for kind, aucs in method.null.items()}
            texts["auc"], texts["selectivity_auc"] = _auc_text(method.enrichment), _auc_text(method.selectivity)
            rows.append([name, *[texts[c] for c in shown]])
        return ["method", *[HEADINGS[c] for c in shown]], rows

    def notes(self) -> list[str]:
        """What a reader must know of the methods: cells of the two arms that one of them lacks."""
        cells = self.stamp["n_cells"]["untreated"] + self.stamp["n_cells"]["treated"]
        return [
            f"{name}: {m.place.n_skipped:,} of {cells:,} cells have no vector and are left out"
            for name, m in self.methods.items()
            if m.place.n_skipped
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; a value that is not defined is None."""
        methods = {}
        for name, m in self.methods.items():
            methods[name] = {
                "about": m.place.about,
                "width": m.place.width,
                "n_skipped": m.place.n_skipped,
                "seconds": round(m.place.seconds, 2),
                "enrichment": asdict(m.enrichment),
                "selectivity": asdict(m.selectivity),
                "separation": m.place.separation,
                "agreement": m.agreement,
                "null_screens": {kind: values.tolist() for kind, values in m.null.items()},
                "treated_controls": m.controls,
                "ranking": m.ranking.reset_index(),
            }
        content = {**self.stamp, "names": asdict(self.names), "reference": self.reference, "methods": methods}
        return plain({"format_version": FORMAT_VERSION, **content})

    def to_json(self, path: str | Path) -> Path:
        """Write everything to a JSON file."""
        return write_json(path, self.to_dict())


def stamp(screen: Screen, data: str, settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What a reader needs to run it again."""
    sizes = screen.sizes()
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "data": data,
        "n_cells": {
            "untreated": int(sizes[0].sum()),
            "treated": int(sizes[1].sum()),
            "of other conditions": int((screen.codes < 0).sum()),
        },
        "n_targets": int((~screen.is_control()).sum()),
        "settings": settings,
        "versions": {name: version(name) for name in ("evae", "numpy", "scipy", "scikit-learn", "anndata")},
    }


def _row(method: MethodResult) -> dict[str, float]:
    row: dict[str, float] = {}
    for prefix, e in (("", method.enrichment), ("selectivity_", method.selectivity)):
        row |= {f"{prefix}auc": e.auc, f"{prefix}p_value": e.p_value}
        row |= {f"{prefix}low": e.low, f"{prefix}high": e.high}
    for kind, aucs in method.null.items():
        known = aucs[np.isfinite(aucs)]
        row |= {f"null_{kind}": float(known.mean()) if len(known) else math.nan}
        row |= {f"null_{kind}_sd": float(known.std(ddof=1)) if len(known) > 1 else math.nan}
        row |= {f"null_{kind}_highest": float(known.max()) if len(known) else math.nan}
    row |= method.place.separation | method.agreement
    return row | {"n_targets": method.enrichment.n_targets, "width": method.place.width}


def _auc_text(e: Enrichment) -> str:
    if math.isnan(e.auc):
        return UNDEFINED
    p = f"p={e.p_value:.1g}" if e.p_value < 0.01 else f"p={e.p_value:.2f}"
    return f"{e.auc:.3f} ({e.low:.2f}–{e.high:.2f}, {p})"


def _null_text(aucs: np.ndarray) -> str:
    known = aucs[np.isfinite(aucs)]
    if not len(known):
        return UNDEFINED
    spread = f" ±{known.std(ddof=1):.2f}" if len(known) > 1 else ""
    return f"{known.mean():.2f}{spread}, highest {known.max():.2f}"


def _text(value: float) -> str:
    return UNDEFINED if math.isnan(value) else f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"
