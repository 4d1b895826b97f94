"""How fast the evaluation is, and how much memory it takes, beside cell-eval and cell-eval2 on the same files.

    python scripts/benchmark_evaluation.py                       # 200 perturbations x 100 cells x 2,000 genes
    python scripts/benchmark_evaluation.py --perturbations 40    # smaller
    python scripts/benchmark_evaluation.py --cell-eval2-python /path/to/python    # where cell-eval2 is installed

Writes a simulated screen and two predictions as h5ad files. Then, a process each and several times in turn, from the
files to the numbers of every perturbation:

* cell-eval (extra `eval`) with its own differential expression, every metric but the energy distance and the
  clustering, compiled beforehand;
* our suite "perturbation", the same metrics, with an empty cache;
* the same on a second prediction, with what is known of the real cells stored;
* cell-eval2's preset vcc2026, compiled beforehand, and our suite "vcc2026", both on raw counts.

Ours also compute the ceiling, the split half of the real cells, and for vcc2026 the zero of the scale; the others'
times do not include that. Every number is compared with the other's at the end. Imports are not timed. Seconds are of
the wall; those of the processor tell more where other programs run beside. Memory is the peak of the process.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import anndata as ad
    import pandas as pd

CONTROL, KEY = "control", "perturbation"
SLOW = ("pearson_edistance", "clustering_agreement")  # as evae leaves them out; not imported, for that loads torch
TOOLS = ("cell-eval", "evae first", "evae second", "cell-eval2 vcc2026", "evae vcc2026")
PAIRS = {"evae first": "cell-eval", "evae second": "cell-eval", "evae vcc2026": "cell-eval2 vcc2026"}
# as the command does, so that torch, which the evaluation does not need, is not loaded
AS_COMMAND = "import sys, runpy, evae.cli; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


def simulate(args: argparse.Namespace, seed: int, with_controls: bool) -> "ad.AnnData":
    """Raw counts of a screen whose perturbations shift 2 % of the genes; about 85 % zeros."""
    import anndata as ad
    import numpy as np
    import pandas as pd
    import scipy.sparse as sp

    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    base = fixed.gamma(0.35, 0.7, args.genes)
    groups = [(f"G{i}", args.cells) for i in range(args.perturbations)]
    groups += [(CONTROL, args.controls)] if with_controls else []
    parts, labels = [], []
    for name, n in groups:
        hit = np.random.default_rng([1, int(name[1:])]) if name != CONTROL else None
        effect = (
            np.zeros(args.genes) if hit is None else hit.normal(0, 1.5, args.genes) * (hit.random(args.genes) < 0.02)
        )
        rate = base * np.exp(effect)
        parts.append(sp.csr_matrix(rng.poisson(rate * rng.gamma(6, 1 / 6, n)[:, None]).astype(np.float32)))
        labels += [name] * n
    obs = pd.DataFrame({KEY: labels}, index=np.arange(len(labels)).astype(str))
    var = pd.DataFrame(index=[f"G{i}" for i in range(args.genes)])
    return ad.AnnData(sp.vstack(parts, format="csr"), obs=obs, var=var)


def write_inputs(args: argparse.Namespace, folder: Path) -> None:
    """Real cells and two predictions with the real controls, each as raw counts and as log1p; and a small set."""
    import anndata as ad

    from evae.evaluation.cells.normalised import log1p_cp10k

    small = argparse.Namespace(perturbations=3, cells=10, controls=20, genes=50)
    real = simulate(args, 1, True)
    sets = {"real": real, "small": simulate(small, 4, True)}
    for name, seed in (("first", 2), ("second", 3)):
        sets[name] = ad.concat([simulate(args, seed, False), real[real.obs[KEY] == CONTROL]])
        sets[name].obs_names_make_unique()
    for name, cells in sets.items():
        cells.write_h5ad(folder / f"{name}_counts.h5ad")
        cells.X = log1p_cp10k(cells.X, "raw counts")
        cells.write_h5ad(folder / f"{name}.h5ad")


def run_cell_eval(predicted: Path, real: Path, folder: Path) -> "pd.DataFrame":
    """What `cell-eval run` does, from two files to two tables on disk."""
    from cell_eval import MetricsEvaluator

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # its progress bars
        evaluator = MetricsEvaluator(
            str(predicted), str(real), control_pert=CONTROL, pert_col=KEY, outdir=str(folder / "cell-eval")
        )
        values, _ = evaluator.compute(skip_metrics=list(SLOW), break_on_error=True)
    return values.to_pandas().set_index(KEY)


def run_cell_eval2(predicted: Path, real: Path, folder: Path) -> "pd.DataFrame":
    """What `cell-eval2 run --preset vcc2026` does, up to its tables."""
    import logging
    from dataclasses import replace

    import anndata as ad
    import cell_eval2
    import pandas as pd

    logging.disable(logging.WARNING)
    config = replace(cell_eval2.EvalConfig.from_preset("vcc2026"), pert_col=KEY, control=CONTROL)
    found = cell_eval2.compute_metrics(ad.read_h5ad(predicted), ad.read_h5ad(real), config=config)
    rows = pd.DataFrame(found.to_dicts())
    rows["metric"] = rows["metric"].str.removeprefix("de_wilcoxon_")
    rows = rows[~rows["metric"].isin(["expr_mse_unbiased", "expr_real_mass_ratio"])]  # its diagnostics
    return rows.pivot_table(index=KEY, columns="metric", values="value", dropna=False)


def run_ours(predicted: Path, real: Path, folder: Path, suite: str = "perturbation") -> "pd.DataFrame":
    """Our suite on the same files."""
    from evae.evaluation import evaluate

    result = evaluate(
        predicted, real, suite=suite, cell_type_key=None, seeds=(0,), with_baselines=False,
        cache=folder / "cache", progress=False,
    )  # fmt: skip
    own = result.records.query("system == 'model' and level == 'pair'")
    own = own.assign(metric=own["metric"].str.replace("discrimination_", "discrimination_score_"))
    return own.pivot_table(index=KEY, columns="metric", values="value", dropna=False)


def work_of(tool: str, folder: Path) -> tuple[Callable[[], "pd.DataFrame"], Callable[[], Any]]:
    """The work that is timed, and the small work before it."""
    files = {path.stem: path for path in folder.glob("*.h5ad")}
    warm = folder / "warm"
    if tool == "cell-eval2 vcc2026":
        pair, small = (files["first_counts"], files["real_counts"]), files["small_counts"]
        return lambda: run_cell_eval2(*pair, folder), lambda: run_cell_eval2(small, small, warm)
    if tool == "evae vcc2026":
        pair, small = (files["first_counts"], files["real_counts"]), files["small_counts"]
        return lambda: run_ours(*pair, folder, "vcc2026"), lambda: run_ours(small, small, warm, "vcc2026")
    run = run_cell_eval if tool == "cell-eval" else run_ours
    predicted = files["second" if tool == "evae second" else "first"]
    return lambda: run(predicted, files["real"], folder), lambda: run(files["small"], files["small"], warm)


def worker(tool: str, folder: Path) -> None:
    """In a process of its own: warm up, do the work, and print the seconds and the peak memory."""
    import numpy as np

    work, warm = work_of(tool, folder)
    with contextlib.suppress(Exception) if tool == "cell-eval2 vcc2026" else contextlib.nullcontext():
        warm()  # cell-eval2 compiles, then refuses few cells without an effect
    start, cpu = time.perf_counter(), time.process_time()
    values = work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    values.astype(np.float64).to_csv(folder / f"{tool}.csv")
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mb": int(peak.split()[1]) / 1024}))


def start(tool: str, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Run a worker and print what it measured."""
    if tool == "evae first":
        shutil.rmtree(folder / "cache", ignore_errors=True)
    python = args.cell_eval2_python if tool.startswith("cell-eval2") else sys.executable
    launch = ["-c", AS_COMMAND, __file__] if tool.startswith("evae") else [__file__]
    done = subprocess.run([python, *launch, "--worker", tool, str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tool} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print("{:<20} {seconds:8.2f} s {cpu:8.2f} s of the processor {peak_mb:8.0f} MB".format(tool, **found), flush=True)
    return found


def largest_difference(ours: "pd.DataFrame", theirs: "pd.DataFrame") -> tuple[float, str]:
    """The largest difference of a number, and its metric; infinite unless NaN stands in the same places."""
    import numpy as np

    found = []
    for metric in theirs.columns.intersection(ours.columns):
        own, other = ours.loc[theirs.index, metric].to_numpy(float), theirs[metric].to_numpy(float)
        same = np.array_equal(np.isnan(own), np.isnan(other))
        found.append((float(np.nanmax(np.abs(own - other), initial=0)) if same else float("inf"), metric))
    return max(found)


def say_ratios(runs: dict[str, list[dict[str, float]]], folder: Path) -> dict[str, dict[str, float]]:
    """Print and return every ratio of ours to the other tool: medians of seconds and of memory."""
    import pandas as pd

    ratios = {}
    for ours, theirs in PAIRS.items():
        if ours in runs and theirs in runs:
            own, other = ({k: median(run[k] for run in runs[t]) for k in runs[t][0]} for t in (ours, theirs))
            ratios[ours] = {k: other[k] / own[k] for k in own}
            print("{}: {seconds:.1f} x faster than {}, {cpu:.1f} x by the processor, 1/{peak_mb:.1f} of the memory"
                  .format(ours, theirs, **ratios[ours]))  # fmt: skip
            if ours != "evae second":
                tables = [pd.read_csv(folder / f"{tool}.csv", index_col=0) for tool in (ours, theirs)]
                print("    largest difference of a number {:.1e} ({})".format(*largest_difference(*tables)))
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--perturbations", type=int, default=200)
    parser.add_argument("--cells", type=int, default=100, help="cells a perturbation")
    parser.add_argument("--controls", type=int, default=3_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=3, help="how often each is run, in turn")
    parser.add_argument("--tools", default=",".join(TOOLS), help="which of them")
    parser.add_argument("--cell-eval2-python", default=sys.executable, help="a Python that has cell-eval2")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker[0], Path(args.worker[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(args, folder)
        runs: dict[str, list[dict[str, float]]] = {}
        for _ in range(args.repeats):
            for tool in args.tools.split(","):
                runs.setdefault(tool, []).append(start(tool, args, folder))
        ratios = say_ratios(runs, folder)
    if args.out:
        sizes = {k: getattr(args, k) for k in ("perturbations", "cells", "controls", "genes")}
        args.out.write_text(json.dumps({"runs": runs, "ratios": ratios, **sizes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
