"""cell-eval itself (Arc Institute, extra `eval`), run on the same cells.

What it would trip over is handled here: it wants the controls inside both files, and scores depend strongly
on them, so the real controls are copied to the prediction; it normalises integer input in place, so it is
given copies that are log1p CP10K already; it swallows a metric's exception unless told not to; its means turn
NaN with one NaN perturbation, so only its values per perturbation are taken. Its energy distance and
clustering cost most of its time and are left out unless asked for.

Its ceiling is what one half of the real cells scores against the other, controls halved too, by the Spearman-Brown
formula 2r / (1 + r) as high as it would be with all cells, where a score is a reliability. Our floor, the split half,
stands without the formula in the other tables.
"""

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from evae.common.extras import require
from evae.evaluation.cells.comparison import Comparison
from evae.evaluation.cells.inputs import Progress
from evae.evaluation.cells.normalised import Cells
from evae.evaluation.metrics.differential import DETable
from evae.evaluation.protocols.record import Record
from evae.evaluation.protocols.stored import real_key, stored_records
from evae.evaluation.systems.names import CEILING, MODEL

if TYPE_CHECKING:
    import anndata as ad  # 26 MB, which files do without

GROUP = "cell-eval"
SLOW_METRICS = ("pearson_edistance", "clustering_agreement")
NO_RELIABILITIES = ("mse", "mae", "de_nsig")  # how the metrics begin that have no ceiling


def cell_eval_protocol(comparison: Comparison, progress: Progress, cache: Path | None = None) -> list[Record]:
    """All of cell-eval's metrics for the model, one record per pair and metric, and their ceilings, one per cell type.

    The ceilings depend on the real cells alone and are kept in `cache`.
    """
    n_real = comparison.n_real
    n_predicted = {pair: len(rows) for pair, rows in comparison.predicted_rows.items()}
    records: list[Record] = []
    for cell_type in progress(comparison.cell_types, "cell-eval"):
        predicted, real = anndata_pair(comparison, cell_type)
        table = run_cell_eval(predicted, real, control=comparison.control)
        for p, row in table.iterrows():
            pair = (cell_type, str(p))
            records += [
                Record(GROUP, "pair", MODEL, str(m), float(v), -1, n_real[pair], n_predicted[pair], *pair)
                for m, v in row.items()
            ]
        stated = hashlib.sha256(f"{cell_type}\x1f{version('cell-eval')}".encode()).hexdigest()[:16]
        key = f"{real_key(comparison)}-{stated}-ceiling"
        records += stored_records(cache, key, partial(_ceilings, real, comparison.control, cell_type))
    return records


def _ceilings(real: "ad.AnnData", control: str, cell_type: str) -> list[Record]:
    n_cells = np.unique(real.obs["perturbation"].to_numpy(), return_counts=True)[1] // 2
    n = int(n_cells[n_cells > 0].mean()) if n_cells.any() else 0
    found = run_ceiling(real, control).items()
    return [Record(GROUP, "pair", CEILING, str(m), float(v), -1, n, n, cell_type) for m, v in found]


def anndata_pair(comparison: Comparison, cell_type: str) -> "tuple[ad.AnnData, ad.AnnData]":
    """(predicted, real) of one cell type as cell-eval wants them, both with the same real controls."""
    controls = comparison.controls.take(comparison.control_rows[cell_type])
    both = [
        _with_controls(cells.take(np.flatnonzero(cells.cell_type == cell_type)), controls)
        for cells in (comparison.predicted, comparison.real)
    ]
    return both[0], both[1]


def run_cell_eval(
    predicted: "ad.AnnData",
    real: "ad.AnnData",
    control: str,
    skip: Sequence[str] = SLOW_METRICS,
    de_predicted: DETable | None = None,
    de_real: DETable | None = None,
) -> pd.DataFrame:
    """Run cell-eval on a pair of AnnData objects with obs "perturbation".

    Args:
        predicted: log1p cells with controls; not changed.
        real: the same of the real cells.
        control: the control's label.
        skip: metrics to leave out.
        de_predicted: differential expression to use instead of cell-eval's own.
        de_real: the same for the real cells.

    Returns:
        One row per perturbation, one column per metric; a value that cell-eval leaves out is NaN.
    """
    require("cell_eval", "this suite")
    from cell_eval import MetricsEvaluator

    tables = {"de_pred": _polars(de_predicted), "de_real": _polars(de_real)}
    with _quiet() as folder:
        evaluator = MetricsEvaluator(predicted.copy(), real.copy(), **_options(folder, control), **tables)
        values, _ = evaluator.compute(skip_metrics=list(skip), write_csv=False, break_on_error=True)
    return values.to_pandas().set_index("perturbation").astype(np.float64)


def run_ceiling(real: "ad.AnnData", control: str, seed: int = 0) -> pd.Series:
    """cell-eval's ceiling, as `run_cell_eval` takes cells; empty where nothing can be halved.

    Its own turns NaN with one perturbation that has no value; here the mean leaves it out.

    Returns:
        Metric -> the highest score to be reached; NaN where the halves do not agree at all.
    """
    from cell_eval import MetricsEvaluator

    with _quiet() as folder:
        evaluator = MetricsEvaluator(None, real.copy(), **_options(folder, control))
        try:
            values, _ = evaluator.compute_ceiling(skip_metrics=list(SLOW_METRICS), write_csv=False, seed=seed)
        except ValueError:  # no perturbation, or not the control, has two cells
            return pd.Series(dtype=np.float64)
    table = values.to_pandas().drop(columns="perturbation").astype(np.float64)
    half = table.loc[:, [not str(m).startswith(NO_RELIABILITIES) for m in table.columns]].mean()
    return (2 * half / (1 + half)).where(half > 0)


@contextlib.contextmanager
def _quiet() -> Iterator[str]:
    """A folder for cell-eval; its progress bars, some per metric, go nowhere, and what goes wrong is raised."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        yield folder


def _options(folder: str, control: str) -> dict[str, Any]:
    return {
        "control_pert": control, "pert_col": "perturbation", "outdir": f"{folder}/cell-eval", "num_threads": _threads()
    }  # fmt: skip


def _threads() -> int:
    """Every processor, but no more than NUMBA_NUM_THREADS, beyond which numba 0.68 raises."""
    from numba import config

    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return min(available, int(getattr(config, "NUMBA_NUM_THREADS")))  # noqa: B009  # set as the module is imported


def _with_controls(cells: Cells, controls: Cells) -> "ad.AnnData":
    labels = np.concatenate([cells.perturbation, controls.perturbation]).astype(str)
    obs = pd.DataFrame({"perturbation": labels}, index=np.arange(len(labels)).astype(str))
    # float64, so that its pseudobulks are not rounded to float32
    matrix = sp.vstack([cells.matrix, controls.matrix], format="csr", dtype=np.float64)
    import anndata as ad

    return ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=cells.genes.astype(str)))


def _polars(table: DETable | None) -> Any:
    if table is None:
        return None
    import polars as pl

    n, g = table.p_value.shape
    return pl.DataFrame(
        {
            "target": np.repeat(table.perturbations.astype(str), g),
            "feature": np.tile(table.genes.astype(str), n),
            "log2_fold_change": table.log2_fold_change.ravel(),
            "p_value": table.p_value.ravel(),
            "fdr": table.fdr.ravel(),
        }
    )
