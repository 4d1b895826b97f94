"""One number of an evaluation, with everything needed to read it."""

from typing import NamedTuple

import pandas as pd


class Record(NamedTuple):
    """One number of the evaluation, with everything needed to read it.

    Attributes:
        group: which table it belongs to: "paper", "robust", "perturbation", "differential expression",
            "cell-eval", "vcc2026", "vcc2026 score", "diversity".
        level: "pooled" over all pairs, or "pair".
        system: "model", a baseline, or "real split half".
        metric: name of the metric.
        value: NaN where it is not defined.
        seed: of the draw; -1 where nothing is drawn.
        n_real, n_generated: cells on either side.
        cell_type, perturbation: of the pair; empty when pooled. The pooled records of "vcc2026" name their cell type.
    """

    group: str
    level: str
    system: str
    metric: str
    value: float
    seed: int
    n_real: int
    n_generated: int
    cell_type: str = ""
    perturbation: str = ""


def to_frame(records: list[Record]) -> pd.DataFrame:
    """Records as a table, one row each."""
    return pd.DataFrame(records, columns=list(Record._fields))
