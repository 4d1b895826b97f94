"""How fast `evae prepare` is and how much memory it takes, beside an earlier version of itself.

    python scripts/benchmark_prepare.py --against REVISION         # 200,000 cells x 2,000 genes, in turns
    python scripts/benchmark_prepare.py --cells 1000000 --rounds 1
    python scripts/benchmark_prepare.py --nominal-gb 2,100         # dense files of that size, of which little is stored

The cells are a simulated screen whose perturbations are named after genes, so that the check of knock-downs reads them
too; 20,000 cells are repeated under new names, in a gzipped h5ad file as anndata writes it. Every run is the whole
command in a process of its own, with its start. Cells a second are those of the wall; the seconds of the processor
tell more where others use the machine. Whether both versions write the same bytes is said.

Files of `--nominal-gb` are dense float32 over 20,000 genes whose chunks were mostly never written, so that they take
100 GB in memory and little on the disk: what grows with the number of cells shows in the peak.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem

from evae.data.simulation.perturb_seq import simulate_perturb_seq

ROOT = Path(__file__).resolve().parents[1]
TILE = 20_000  # cells that are simulated
CHUNK = 20_000  # values of a chunk, about as anndata writes them
WIDE, TALL, BAND = 20_000, 1_000, 200  # genes of a dense file, cells and genes of a chunk; one band holds counts


def write_screen(path: Path, n_cells: int, n_genes: int, compression: str | None) -> None:
    """A screen as h5ad, CSR."""
    tile = simulate_perturb_seq(min(n_cells, TILE), n_genes, n_perturbations=100, median_library_size=0.2 * n_genes)
    counts = tile.X.tocsr().astype(np.float32)
    times = -(-n_cells // tile.n_obs)
    names = tile.obs["perturbation"].astype(str).str.removeprefix("KO-")
    obs = pd.DataFrame({"perturbation": names, "cell_type": tile.obs["cell_type"].astype(str)})
    obs = pd.concat([obs] * times, ignore_index=True)[:n_cells].astype("category").set_axis(cell_names(n_cells))
    sizes = np.tile(np.diff(counts.indptr), times)[:n_cells]
    ends = np.concatenate([[0], np.cumsum(sizes)])
    with h5py.File(path, "w") as file:
        begin(file, obs, tile.var[[]])
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (n_cells, n_genes)})
        group["indptr"] = ends
        options = {"chunks": (CHUNK,), "compression": compression} if compression else {}
        for part in ("data", "indices"):
            values = getattr(counts, part)
            stored = group.create_dataset(part, (ends[-1],), values.dtype, **options)
            for low in range(0, int(ends[-1]), len(values)):
                stored[low : low + len(values)] = values[: int(ends[-1]) - low]


def write_dense(path: Path, gigabytes: float) -> int:
    """A dense file that is large by its shape alone; returns the number of cells."""
    n_cells = int(gigabytes * 1e9 / (4 * WIDE))
    rng = np.random.default_rng(0)
    labels = {"perturbation": rng.choice(["control", "A", "B"], n_cells), "cell_type": rng.choice(["x", "y"], n_cells)}
    obs = pd.DataFrame(labels, index=cell_names(n_cells)).astype("category")
    with h5py.File(path, "w") as file:
        begin(file, obs, pd.DataFrame(index=[f"G{i:05d}" for i in range(WIDE)]))
        chunks = (min(TALL, n_cells), BAND)
        stored = file.create_dataset("X", (n_cells, WIDE), np.float32, chunks=chunks, compression="gzip", fillvalue=0)
        stored.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for low in range(0, n_cells, TALL):
            cells = min(TALL, n_cells - low)
            stored[low : low + cells, :BAND] = 1 + rng.poisson(0.01, (cells, BAND)) * (rng.random(BAND) < 0.1)
    return n_cells


def begin(file: h5py.File, obs: pd.DataFrame, var: pd.DataFrame) -> None:
    """The marks of an AnnData, and its tables."""
    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    write_elem(file, "obs", obs)
    write_elem(file, "var", var)


def cell_names(n: int) -> list[str]:
    return [f"cell{i}" for i in range(n)]


COMMAND = """import sys
from evae.cli import main
try:
    main(sys.argv[1:])
finally:  # ru_maxrss would count the process that starts it
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def run(source: Path, out: Path, package: Path, genes: str) -> tuple[float, float, float]:
    """Seconds of the wall and of the processor, and the peak in MB, of one command."""
    command = [sys.executable, "-c", COMMAND, "prepare", str(source), "--out", str(out), "--genes", genes]
    command += ["--control", "control", "--perturbation-key", "perturbation", "--cell-type-key", "cell_type"]
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(package)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    said, printed = process.stderr.read().decode(), process.stdout.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(said)
    return time.perf_counter() - begun, used.ru_utime + used.ru_stime, int(printed.split()[-1]) / 1024


def earlier(revision: str, folder: Path) -> Path:
    """The package as it was, unpacked."""
    packed = subprocess.run(["git", "-C", ROOT, "archive", revision, "src"], check=True, capture_output=True).stdout
    subprocess.run(["tar", "x", "-C", folder], input=packed, check=True)
    return folder / "src"


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Take turns with the earlier version."""
    versions = {"this version": ROOT / "src"}
    if args.against:
        versions[args.against] = earlier(args.against, folder)
    source = folder / "cells.h5ad"
    write_screen(source, args.cells, args.genes, None if args.plain else "gzip")
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in versions}
    shards = set()
    for i in range(args.rounds):
        for name, package in versions.items():
            out = folder / f"out-{i}-{len(found[name])}-{package.parent.name}"
            found[name].append(run(source, out, package, args.panel))
            shards.add(json.dumps(json.loads((out / "dataset.json").read_text())["shards"]))
            subprocess.run(["rm", "-r", out], check=True)
    size = source.stat().st_size / 1e6
    stored, same = "plain" if args.plain else "gzip", "the same" if len(shards) == 1 else "of other bytes"
    print(f"{args.cells:,} cells x {args.genes:,} genes, {size:,.0f} MB {stored} h5ad, --genes {args.panel}, "
          f"{args.rounds} rounds; the shards are {same}")  # fmt: skip
    print(f"{'':16} {'cells/s':>9} {'seconds':>9} {'CPU s':>7} {'peak MB':>8}")
    for name, runs in found.items():
        wall, cpu, peak = (pick(values) for pick, values in zip((min, min, max), zip(*runs, strict=True), strict=True))
        print(f"{name[:16]:16} {args.cells / wall:9,.0f} {wall:9.1f} {cpu:7.1f} {peak:8,.0f}")
    first, *others = (min(runs)[0] for runs in found.values())
    for other in others:
        print(f"{other / first:.2f} times the cells a second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--panel", default="all", help="what --genes of evae prepare is told")
    parser.add_argument("--plain", action="store_true", help="a file without compression")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", help="an earlier revision of this repository")
    parser.add_argument("--nominal-gb", help="sizes of dense files, separated by commas, in place of the screen")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not args.nominal_gb:
            compare(args, folder)
            return
        for size in map(float, args.nominal_gb.split(",")):
            source = folder / "dense.h5ad"
            n_cells = write_dense(source, size)
            wall, cpu, peak = run(source, folder / f"out-{size}", ROOT / "src", "all")
            print(f"{size:g} GB dense, {n_cells:,} cells x {WIDE:,} genes, {source.stat().st_size / 1e6:,.0f} MB on "
                  f"the disk: {wall:.0f} s, {cpu:.0f} s of the processor, peak {peak:,.0f} MB")  # fmt: skip


if __name__ == "__main__":
    main()
