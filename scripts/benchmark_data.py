"""How fast cells become training batches, beside other loaders: one run, one process, the same cells.

    python scripts/benchmark_data.py                                  # 20,000 cells x 2,000 genes
    python scripts/benchmark_data.py --cells 6000 --genes 18000

Writes a simulated screen as h5ad, brings it into the form that each loader reads, and takes turns: each round every
loader gives the same number of shuffled batches of the same size. What is reported is the CPU time of the process
(all threads, numeric libraries held to one) a cell, the smallest of the rounds, since other programs can only add
to it. Ours gives padded sparse batches with ids, which the models take as they are, and, to compare like with like,
the same scattered into dense ones; the others give dense float32 tensors (cells, genes). A set of this size is kept
decoded from the second epoch on; "streamed" keeps nothing and decodes every epoch, as most of a set larger than the
room for it is.

Loaders that are not installed are listed as absent, with what installs them. Conversion is not timed.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read by the libraries when they are imported
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["NUMBA_NUM_THREADS"] = "1"
os.environ["RAYON_NUM_THREADS"] = "1"

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
import torch
from datasets import load_dataset

from evae.data.preparing.prepare import prepare_dataset
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.data.streaming import loader as dataset
from evae.data.streaming.loader import CellLoader

Batches = Iterator[torch.Tensor]
Make = Callable[[Path, int], Batches]


def evae_sparse(folder: Path, batch_size: int) -> Batches:
    return (batch["counts"] for batch in CellLoader(folder / "evae", batch_size=batch_size, prefetch=0))


def evae_streamed(folder: Path, batch_size: int) -> Batches:
    kept, dataset.KEPT_BYTES = dataset.KEPT_BYTES, 0
    try:
        return evae_sparse(folder, batch_size)
    finally:
        dataset.KEPT_BYTES = kept


def evae_dense(folder: Path, batch_size: int) -> Batches:
    loader = CellLoader(folder / "evae", batch_size=batch_size, prefetch=0)
    n_genes = len(loader.info.genes)
    for batch in loader:
        dense = torch.zeros(len(batch["counts"]), n_genes)
        yield dense.scatter_add_(1, batch["gene_ids"].long(), batch["counts"])


def annbatch(folder: Path, batch_size: int) -> Batches:
    from annbatch import DatasetCollection, Loader

    DatasetCollection(folder / "annbatch.zarr").add_adatas([folder / "cells.h5ad"], shuffle=True)
    collection = DatasetCollection(folder / "annbatch.zarr", mode="r")
    while True:
        options = {"batch_size": batch_size, "chunk_size": 32, "preload_nchunks": 256, "preload_to_gpu": False}
        for batch in Loader(shuffle=True, drop_last=True, to="torch", **options).use_collection(collection):
            yield batch["X"].to_dense() if batch["X"].layout != torch.strided else batch["X"]


def sc_dataset(folder: Path, batch_size: int) -> Batches:
    from scdataset import BlockShuffling, scDataset

    cells = ad.read_h5ad(folder / "cells.h5ad", backed="r")
    dataset = scDataset(
        cells,
        BlockShuffling(block_size=16),
        batch_size,
        fetch_factor=64,
        drop_last=True,
        fetch_callback=lambda data, rows: data[rows].to_memory().X,
    )
    while True:
        yield from (_dense(batch) for batch in dataset)


def cell_load(folder: Path, batch_size: int) -> Batches:
    """Of an uncompressed file in the order that it likes best; a control comes beside every cell, as it is made to."""
    from cell_load.data_modules import PerturbationDataModule

    cells = ad.read_h5ad(folder / "cells.h5ad")
    (folder / "cell_load").mkdir()
    order = cells.obs.sort_values(["cell_type", "perturbation"]).index
    cells[order].copy().write_h5ad(folder / "cell_load" / "cells.h5ad")
    parts = (f'[datasets]\ncells = "{folder / "cell_load"}"', '[training]\ncells = "train"', "[zeroshot]", "[fewshot]")
    (folder / "cell_load.toml").write_text("\n".join(parts))
    keys = {"pert_col": "perturbation", "cell_type_key": "cell_type", "batch_col": "cell_type"}
    module = PerturbationDataModule(
        str(folder / "cell_load.toml"), **keys, control_pert="control", batch_size=1, cell_sentence_len=batch_size,
        num_workers=0, output_space="all", is_log1p=False, use_consecutive_loading=True,
    )  # fmt: skip
    module.setup()
    while True:
        yield from (batch["pert_cell_emb"] for batch in module.train_dataloader())


def cellstream(folder: Path, batch_size: int) -> Batches:
    """Its store of single cells, made for random access."""
    from cellstream import CellStore, write_sharded

    write_sharded(str(folder / "cells.h5ad"), str(folder / "cells.shad"), layout="cell", n_workers=1)
    store, rng = CellStore(folder / "cells.shad"), np.random.default_rng(0)
    while True:
        rows = rng.permutation(store.n_obs)
        for start in range(0, store.n_obs - batch_size, batch_size):
            yield _dense(store.gather_rows(rows[start : start + batch_size], n_threads=1))


def bixverse(folder: Path, batch_size: int) -> Batches:
    """Over cells of its own of the same density: its Python package writes no others."""
    from bixverse import CellLoader as BixverseLoader
    from bixverse import CellReader, _bixverse

    cells = ad.read_h5ad(folder / "cells.h5ad")
    density = cells.X.nnz / np.prod(cells.shape)
    _bixverse._write_synthetic_store(str(folder / "bixverse.bin"), *cells.shape, density, 0)
    reader = CellReader(str(folder / "bixverse.bin"))
    while True:
        options = {"batch_size": batch_size, "layer": "raw", "sparse": False, "drop_last": True}
        yield from (torch.from_numpy(batch.raw).float() for batch in BixverseLoader(reader, **options))


def ann_loader(folder: Path, batch_size: int) -> Batches:
    from anndata.experimental import AnnLoader

    while True:
        cells = ad.read_h5ad(folder / "cells.h5ad", backed="r")
        for batch in AnnLoader(cells, batch_size=batch_size, shuffle=True):
            yield _dense(batch.X)


def backed(folder: Path, batch_size: int) -> Batches:
    cells = ad.read_h5ad(folder / "cells.h5ad", backed="r")
    rng = np.random.default_rng(0)
    while True:
        rows = rng.permutation(cells.n_obs)
        for start in range(0, cells.n_obs - batch_size, batch_size):
            yield _dense(cells[np.sort(rows[start : start + batch_size])].to_memory().X)


def rows_of_datasets(folder: Path, batch_size: int) -> Batches:
    """`datasets` streaming over list columns, row by row, with its buffered shuffle."""
    rows = load_dataset("parquet", data_files=str(folder / "lists.parquet"), split="train", streaming=True)
    n_genes = json.loads((folder / "n_genes.json").read_text())
    dense = np.zeros((batch_size, n_genes), np.float32)
    for i, row in enumerate(cycle(rows.shuffle(seed=0, buffer_size=1_000))):
        dense[i % batch_size, row["genes"]] = row["counts"]
        if (i + 1) % batch_size == 0:
            yield torch.from_numpy(dense)
            dense = np.zeros((batch_size, n_genes), np.float32)


def _dense(block: Any) -> torch.Tensor:
    if isinstance(block, torch.Tensor):
        return (block.to_dense() if block.layout != torch.strided else block).float()
    return torch.from_numpy(np.asarray(block.toarray() if sp.issparse(block) else block, dtype=np.float32))


# Loader: how to make it, and the package that brings it; None needs no more than this project.
LOADERS: dict[str, tuple[Make, str | None]] = {
    "evae": (evae_sparse, None),
    "evae, streamed": (evae_streamed, None),
    "evae, made dense": (evae_dense, None),
    "annbatch": (annbatch, "annbatch"),
    "scDataset": (sc_dataset, "scDataset"),
    "cellstream": (cellstream, "cellstream"),
    "bixverse": (bixverse, "bixverse"),
    "cell-load": (cell_load, "cell-load"),
    "AnnLoader": (ann_loader, "anndata"),
    "backed AnnData": (backed, "anndata"),
    "datasets, list columns row by row": (rows_of_datasets, "datasets"),
}
SLOW = {"cell-load", "AnnLoader", "backed AnnData", "datasets, list columns row by row"}  # fewer cells of these


def write_files(folder: Path, n_cells: int, n_genes: int) -> None:
    cells = simulate_perturb_seq(n_cells, n_genes, n_perturbations=20, median_library_size=0.2 * n_genes)
    cells.X = cells.X.astype(np.float32)
    cells.write_h5ad(folder / "cells.h5ad", compression="gzip")
    labels = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "control"}
    prepare_dataset(folder / "cells.h5ad", folder / "evae", **labels, progress=False)
    lists = [np.split(a, cells.X.indptr[1:-1]) for a in (cells.X.indices, cells.X.data)]
    table = pa.table({"genes": lists[0], "counts": lists[1]})
    pq.write_table(table, folder / "lists.parquet", row_group_size=4096, compression="zstd")
    (folder / "n_genes.json").write_text(json.dumps(n_genes))


def open_all(folder: Path, batch_size: int) -> tuple[dict[str, Batches], dict[str, str]]:
    """The loaders, warmed up by one batch, and why others are absent."""
    opened, absent = {}, {}
    for name, (make, package) in LOADERS.items():
        try:
            batches = make(folder, batch_size)
            next(batches)
            opened[name] = batches
        except Exception as error:
            missing = isinstance(error, ImportError) and package is not None
            absent[name] = f"pip install {package}" if missing else " ".join(str(error).split())[:100]
    return opened, absent


def measure(batches: Batches, n_cells: int) -> float:
    """CPU microseconds a cell."""
    done, begun = 0, time.process_time()
    while done < n_cells:
        done += len(next(batches))
    return (time.process_time() - begun) / done * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, args.cells, args.genes)
        size = sum(p.stat().st_size for p in (folder / "evae" / "data").iterdir())
        share = size / (folder / "cells.h5ad").stat().st_size
        opened, absent = open_all(folder, args.batch_size)
        times: dict[str, list[float]] = {loader: [] for loader in opened}
        for _ in range(args.rounds):
            for loader, batches in opened.items():
                times[loader].append(measure(batches, args.cells // (10 if loader in SLOW else 1)))
    best = {loader: min(values) for loader, values in times.items()}
    print(f"{args.cells:,} cells x {args.genes:,} genes, batches of {args.batch_size}, {args.rounds} rounds")
    print(f"{platform.machine()}, Python {platform.python_version()}, pyarrow {version('pyarrow')}; shards on disk "
          f"{share:.0%} of the gzip h5ad")  # fmt: skip
    print(f"{'loader':36} {'CPU us a cell':>14} {'x ours':>8} {'x ours, dense':>14}")
    for loader, value in sorted(best.items(), key=lambda item: item[1]):
        print(f"{loader:36} {value:14.1f} {value / best['evae']:8.1f} {value / best['evae, made dense']:14.1f}")
    for loader, reason in absent.items():
        print(f"{loader:36} absent ({reason})")
    if args.out:
        args.out.write_text(json.dumps({"cpu_us_a_cell": times, "absent": absent, "disk_share": share}, indent=1))


if __name__ == "__main__":
    main()
