"""How fast the evaluation is beside cell-eval, on the same files and the same metrics, in one run.

    python scripts/benchmark_evaluation.py                      # 372 perturbations x 100 cells x 2,000 genes
    python scripts/benchmark_evaluation.py --perturbations 40   # smaller

Writes a simulated screen and two predictions as h5ad files and times, from the files to the numbers:

* cell-eval (extra `eval`), every metric but the energy distance and the clustering, compiled beforehand;
* our suite "perturbation" on the first prediction, with an empty cache;
* the same on a second prediction, with the differential expression of the real cells stored.

Ours also computes the ceiling, the split half of the real cells, which cell-eval's time does not include. The
numbers of both are compared at the end, perturbation by perturbation.
"""

import argparse
import contextlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from evae.evaluation import evaluate
from evae.evaluation.cells.inputs import require
from evae.evaluation.cells.normalised import log1p_cp10k
from evae.evaluation.protocols.cell_eval_adapter import SLOW_METRICS


def simulate(args: argparse.Namespace, seed: int, with_controls: bool) -> ad.AnnData:
    """Log1p CP10K of a screen whose perturbations shift 2 % of the genes; about 85 % zeros."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    base = fixed.gamma(0.35, 0.7, args.genes)
    groups = [(f"G{i}", args.cells) for i in range(args.perturbations)]
    groups += [("control", args.controls)] if with_controls else []
    parts, labels = [], []
    for name, n in groups:
        hit = np.random.default_rng([1, int(name[1:])]) if name != "control" else None
        effect = (
            np.zeros(args.genes) if hit is None else hit.normal(0, 1.5, args.genes) * (hit.random(args.genes) < 0.02)
        )
        rate = base * np.exp(effect)
        parts.append(sp.csr_matrix(rng.poisson(rate * rng.gamma(6, 1 / 6, n)[:, None]).astype(np.float32)))
        labels += [name] * n
    matrix = log1p_cp10k(sp.vstack(parts, format="csr"), "raw counts")
    obs = pd.DataFrame({"perturbation": labels}, index=np.arange(len(labels)).astype(str))
    return ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(args.genes)]))


def run_cell_eval(predicted: Path, real: Path, folder: Path) -> pd.DataFrame:
    """What `cell-eval run` does, from two files to two tables on disk."""
    from cell_eval import MetricsEvaluator

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # its progress bars
        evaluator = MetricsEvaluator(
            str(predicted), str(real), control_pert="control", pert_col="perturbation", outdir=str(folder)
        )
        values, _ = evaluator.compute(skip_metrics=list(SLOW_METRICS), break_on_error=True)
    return values.to_pandas().set_index("perturbation")


def run_ours(predicted: Path, real: Path, cache: Path) -> pd.DataFrame:
    """Our suite on the same files."""
    result = evaluate(
        predicted, real, suite="perturbation", cell_type_key=None, seeds=(0,), with_baselines=False,
        cache=cache, progress=False,
    )  # fmt: skip
    own = result.records.query("system == 'model'")
    return own.pivot_table(index="perturbation", columns="metric", values="value", dropna=False)


def timed(name: str, work: Callable[[], Any]) -> tuple[float, Any]:
    """Run and print the seconds; those of the processor tell more where other programs run beside."""
    start, cpu = time.perf_counter(), time.process_time()
    value = work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"{name:<42} {seconds:8.1f} s, {cpu:8.1f} s of the processor", flush=True)
    return seconds, value


def largest_difference(ours: pd.DataFrame, theirs: pd.DataFrame) -> dict[str, float]:
    """Largest difference of every metric over perturbations; infinite unless NaN stands in the same places."""
    ours = ours.rename(columns=lambda c: c.replace("discrimination_", "discrimination_score_"))
    found = {}
    for metric in theirs.columns:
        own, other = ours.loc[theirs.index, metric].to_numpy(float), theirs[metric].to_numpy(float)
        same = np.array_equal(np.isnan(own), np.isnan(other))
        found[metric] = float(np.nanmax(np.abs(own - other), initial=0)) if same else float("inf")
    return found


def write_inputs(args: argparse.Namespace, folder: Path) -> tuple[Path, Path, Path, Path]:
    """Files of the real cells, two predictions as cell-eval wants them, and the second without controls."""
    real = simulate(args, seed=1, with_controls=True)
    controls = real[real.obs["perturbation"] == "control"]
    paths = [folder / f"{name}.h5ad" for name in ("real", "first", "second")]
    real.write_h5ad(paths[0])
    for path, seed in zip(paths[1:], (2, 3), strict=True):
        cells = simulate(args, seed, with_controls=False)
        both = ad.concat([cells, controls])
        both.obs_names_make_unique()
        both.write_h5ad(path)
    small = simulate(argparse.Namespace(perturbations=3, cells=10, controls=20, genes=50), 4, True)
    small.write_h5ad(folder / "small.h5ad")
    return paths[0], paths[1], paths[2], folder / "small.h5ad"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--perturbations", type=int, default=372)
    parser.add_argument("--cells", type=int, default=100, help="cells a perturbation")
    parser.add_argument("--controls", type=int, default=3_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--out", type=Path, help="write the times to this JSON file")
    args = parser.parse_args()
    require("cell_eval", "this comparison")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real, first, second, small = write_inputs(args, folder)
        run_cell_eval(small, small, folder / "warm")  # compile its kernels
        run_ours(small, small, folder / "warm-cache")
        times = {}
        times["cell_eval"], theirs = timed("cell-eval", lambda: run_cell_eval(first, real, folder / "out"))
        times["ours"], ours = timed("evae, first prediction", lambda: run_ours(first, real, folder / "cache"))
        times["ours_second"], _ = timed("evae, second prediction", lambda: run_ours(second, real, folder / "cache"))
    differences = largest_difference(ours, theirs)
    worst = max(differences, key=lambda metric: differences[metric])
    first_ratio, second_ratio = (times["cell_eval"] / times[name] for name in ("ours", "ours_second"))
    print(f"\nfirst prediction {first_ratio:.1f} x faster than cell-eval, second {second_ratio:.1f} x")
    print(f"largest difference of a number {differences[worst]:.1e} ({worst}; cell-eval averages in float32)")
    if args.out:
        sizes = {k: getattr(args, k) for k in ("perturbations", "cells", "controls", "genes")}
        args.out.write_text(
            json.dumps({**times, **sizes, "differences": differences, "machine": platform.processor()}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
