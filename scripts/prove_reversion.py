"""Does the reversion benchmark find what is there, and nothing where nothing is? Trials of some minutes each.

    python scripts/prove_reversion.py --out runs/reversion_proof [--data DIR] [--only simulated null kang papalexi]
    python scripts/prove_reversion.py --out runs/reversion_proof --only scale     # 1,000,000 cells, half an hour

simulated: 200 knock-downs in two arms, six of which revert the stress; a tokenizer is trained on the cells.
null:      the same without any reverter, over many seeds: is the AUC distributed as its permutation null says?
kang:      a tokenizer that never saw a cell type: how well does it tell stimulated from control cells there?
papalexi:  do the knock-outs of the interferon pathway move cells in one direction, more than other targets do?
scale:     seconds and memory of embedding and ranking a quarter of the cells, and all of them.

DIR holds kang_ifnb.h5ad and papalexi_thp1.h5ad, raw counts with obs `perturbation` and `cell_type`. Writes
results.json and the report of the simulated screen.
"""

import argparse
import itertools
import json
import resource
import time
from pathlib import Path

import anndata as ad
import numpy as np
from scipy.stats import kstest
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import evae
from evae import reversion
from evae.common.progress import progress_bar
from evae.data.preparing.prepare import prepare_dataset
from evae.data.reading.anndata_counts import AnnDataCounts
from evae.data.simulation.screen import (
    CONTROLS,
    ReversionScreen,
    simulate_reversion_screen,
    write_reversion_screen,
)
from evae.evaluation.cells.normalised import log1p_cp10k
from evae.evaluation.cells.projection import fit_projection
from evae.inference.checkpoint import Checkpoint
from evae.inference.embedding import CellEncoder
from evae.inference.embedding_files import embed_file
from evae.reversion.benchmark import place_groups
from evae.reversion.enrichment import enrichment
from evae.reversion.names import ScreenNames
from evae.reversion.ranking import rank_targets
from evae.reversion.screen import Screen
from evae.reversion.sources import in_memory
from evae.reversion.sums import calinski_harabasz, unit
from evae.training.settings import config_path, load_settings
from evae.training.tokenizer import train_tokenizer

KINDS = ("latents", "pooled", "codes")
PATHWAY = ("IFNGR1", "IFNGR2", "JAK2", "STAT1")


def trained(cells: ad.AnnData, folder: Path, keys: dict[str, str], genes: str, steps: int) -> evae.Pipeline:
    """A tokenizer of the preset `small` with batches of 128, trained on the cells."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer" / "config.json").is_file():
        cells.write_h5ad(folder / "cells.h5ad")
        prepare_dataset(folder / "cells.h5ad", folder / "data", genes=genes, progress=False, **keys)
        values = [f"dataset={folder / 'data'}", f"output_dir={folder / 'tokenizer'}", f"max_steps={steps}"]
        values += ["batch_size=128", "warmup_steps=50", "log_every=50"]
        values += [f"save_every={steps}", f"eval_every={steps}"]
        train_tokenizer(load_settings("tokenizer", config_path("small", "tokenizer"), values))
    return evae.pipeline(folder / "tokenizer")


def simulated(out: Path, steps: int) -> dict:
    """The true reverters are found: by the encoder, and by PCA, UMAP and differential expression."""
    screen = simulate_reversion_screen(20_000, seed=0)
    keys = {"perturbation_key": "gene_target", "cell_type_key": "condition", "control": "SAFE_TARGET"}
    pipe = trained(screen, out / "simulated", keys, "all", steps)
    names = ScreenNames(positives=tuple(screen.uns["simulation"]["reverters"]))
    result = reversion.run(screen, names, model=pipe, kinds=KINDS, baselines=available(), n_components=32)
    result.print()
    result.report(out / "simulated" / "report")
    return result.table().astype(float).to_dict("index")


def null(n_seeds: int) -> dict:
    """Screens without reverters: the AUC of six targets named beforehand is distributed as random sets' is."""
    aucs, p_values, exact = [], [], []
    for seed in range(n_seeds):
        cells = simulate_reversion_screen(6_000, seed=seed, n_genes=120, n_targets=100, reversion=0.0)
        # drawn from all targets: those named reverters have no side effects, which would set them apart
        targets = sorted(set(cells.obs["gene_target"]) - set(CONTROLS))
        positives = np.random.default_rng(seed).choice(targets, 6, replace=False)
        screen = Screen.read(AnnDataCounts(cells), ScreenNames(positives=tuple(positives)))
        matrix = log1p_cp10k(cells.X, "raw counts")
        vectors = fit_projection(matrix[:2_000], 10)(matrix)
        with progress_bar(False) as bar:
            place = place_groups(in_memory("pca", np.arange(len(vectors)), vectors, ""), screen, bar, 0)
        ranking = rank_targets(screen, place.centroids, place.sizes)
        found = enrichment(ranking["distance"].to_numpy(), ranking["positive"].to_numpy(), n_permutations=2_000)
        aucs.append(found.auc)
        p_values.append(found.p_value)
        draws = np.random.default_rng(seed).permuted(np.tile(np.arange(1, 101), (200, 1)), axis=1)[:, :6]
        exact.append(1 - (draws.mean(axis=1) - 0.5) / 100)
    test = kstest(aucs, np.concatenate(exact))
    return {
        "seeds": n_seeds,
        "auc_mean": float(np.mean(aucs)),
        "auc_sd": float(np.std(aucs, ddof=1)),
        "permutation_null_sd": float(np.std(np.concatenate(exact))),
        "ks_p_value": float(test.pvalue),
        "p_values_uniform_ks": float(kstest(p_values, "uniform").pvalue),
    }


def kang(data: Path, out: Path, held_out: str, steps: int) -> dict:
    """Stimulated against control cells of a cell type that neither the encoder nor PCA nor UMAP was fitted on."""
    cells = ad.read_h5ad(data / "kang_ifnb.h5ad")
    own = (cells.obs["cell_type"] == held_out).to_numpy()
    keys = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "ctrl"}
    folder = out / f"kang_{held_out.replace(' ', '_')}"
    pipe = trained(cells[~own].copy(), folder, keys, "hvg:1000", steps)
    spaces = {f"evae {kind}": embedded(pipe, cells, kind) for kind in KINDS}
    spaces |= fitted(cells, pipe.processor.genes, ~own, spaces["evae latents"].shape[1])
    labels = (cells.obs["perturbation"] == "IFNb").to_numpy()[own].astype(int)
    return {name: separation(values[own], labels) for name, values in spaces.items()}


def papalexi(data: Path, out: Path, steps: int) -> dict:
    """The mean cosine among the pathway's shifts from control, against that of every other set of four targets."""
    cells = ad.read_h5ad(data / "papalexi_thp1.h5ad")
    keys = {"perturbation_key": "perturbation", "cell_type_key": "bio_rep", "control": "non-targeting"}
    pipe = trained(cells, out / "papalexi", keys, "all", steps)
    spaces = {f"evae {kind}": embedded(pipe, cells, kind) for kind in KINDS}
    spaces |= fitted(cells, list(cells.var_names), np.ones(len(cells), bool), spaces["evae latents"].shape[1])
    labels = cells.obs["perturbation"].astype(str).to_numpy()
    targets = sorted(set(labels) - {"non-targeting"})
    chosen = [targets.index(t) for t in PATHWAY]
    found = {}
    for name, values in spaces.items():
        vectors = unit(values.astype(np.float64))
        centre = vectors[labels == "non-targeting"].mean(axis=0)
        shifts = unit(np.stack([vectors[labels == t].mean(axis=0) - centre for t in targets]))
        cosine = shifts @ shifts.T
        sets = np.array(list(itertools.combinations(range(len(targets)), 4)))
        means = np.mean([cosine[sets[:, i], sets[:, j]] for i, j in itertools.combinations(range(4), 2)], axis=0)
        own = means[(sets == chosen).all(axis=1)][0]
        rest = np.setdiff1d(np.arange(len(targets)), chosen)
        found[name] = {
            "cosine_within": float(own),
            "cosine_to_the_rest": float(cosine[np.ix_(chosen, rest)].mean()),
            "rank_among_sets_of_four": int((means > own).sum() + 1),
            "p_value": float((means >= own).mean()),
        }
    return found


def scale(out: Path, n_cells: int, n_genes: int = 2_000) -> dict:
    """CPU seconds and peak memory of `evae embed` and the ranking, untrained weights; a quarter of the cells first."""
    truth = ReversionScreen(n_genes, 1_732, 6, seed=0, counts_per_gene=0.3)
    config = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 64, "n_latents": 16}
    model = evae.EvaeModel(evae.EvaeConfig(n_genes, encoder="mlp", decoder="mlp", fsq_levels=[8, 8], **config)).eval()
    checkpoint = Checkpoint(model, evae.EvaeProcessor(genes=truth.genes), "untrained", "")
    names = ScreenNames(positives=tuple(truth.reverters))
    found = {}
    for n in (n_cells // 4, n_cells):
        file, stored = out / f"screen_{n}.h5ad", out / f"embedded_{n}.parquet"
        if not file.is_file():
            write_reversion_screen(file, truth, n)
        seconds = [time.process_time()]
        embed_file(checkpoint, file, stored, overwrite=True, progress=False)
        seconds.append(time.process_time())
        result = reversion.run(file, names, embeddings={"evae": stored}, n_permutations=1_000, progress=False)
        seconds.append(time.process_time())
        found[n] = {
            "embed_cpu_seconds": round(seconds[1] - seconds[0], 1),
            "rank_cpu_seconds": round(seconds[2] - seconds[1], 1),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "targets_ranked": result.methods["evae"].enrichment.n_targets,
        }
        print(n, found[n], flush=True)
    return {str(n): values for n, values in found.items()}


def embedded(pipe: evae.Pipeline, cells: ad.AnnData, kind: str) -> np.ndarray:
    """Embeddings of all cells; zeros for cells without counts over the panel."""
    source = AnnDataCounts(cells)
    encoder = CellEncoder.align(pipe.checkpoint, source, kind)
    return np.nan_to_num(np.concatenate([values for _, values in encoder.blocks(source)]))


def fitted(cells: ad.AnnData, genes: list[str], fit: np.ndarray, width: int) -> dict[str, np.ndarray]:
    """PCA, and UMAP where it is installed, of the same width, fitted on the cells `fit` and applied to all."""
    matrix = log1p_cp10k(cells[:, genes].X, "raw counts")
    spaces = {"pca": fit_projection(matrix[np.flatnonzero(fit)], width)(matrix)}
    if "umap" in available():
        from umap import UMAP

        umap = UMAP(n_components=width, random_state=0, n_jobs=1).fit(spaces["pca"][fit].astype(np.float32))
        placed = np.asarray(umap.embedding_ if fit.all() else umap.transform(spaces["pca"].astype(np.float32)))
        spaces["umap"] = placed - placed.mean(axis=0)
    return spaces


def separation(values: np.ndarray, labels: np.ndarray, n_shuffles: int = 200) -> dict[str, float]:
    """Accuracy of 15 nearest neighbours (ten folds, cosine), and the Calinski-Harabasz ratio over shuffles."""
    vectors = unit(values.astype(np.float64))
    neighbours = KNeighborsClassifier(15, metric="cosine")
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    accuracy = cross_val_score(neighbours, vectors[order], labels[order], cv=10, scoring="balanced_accuracy")
    codes = np.stack([labels, *[rng.permutation(labels) for _ in range(n_shuffles)]])
    sums = np.stack([[vectors[row == g].sum(axis=0) for g in (0, 1)] for row in codes])
    counts = np.stack([np.bincount(row, minlength=2) for row in codes])
    scores = calinski_harabasz(sums, counts, float((vectors**2).sum()))
    return {
        "knn_balanced_accuracy": float(accuracy.mean()),
        "knn_standard_error": float(accuracy.std(ddof=1) / np.sqrt(len(accuracy))),
        "ch_ratio": float(scores[0] / scores[1:].mean()),
        "cells": len(labels),
    }


def available() -> tuple[str, ...]:
    """The baselines that can be had here."""
    try:
        import umap  # noqa: F401
    except ImportError:
        return ("pca", "de")
    return ("pca", "umap", "de")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/reversion_proof"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", nargs="+", default=["simulated", "null", "kang", "papalexi"])
    parser.add_argument("--steps", type=int, default=1_000, help="training steps of each tokenizer")
    parser.add_argument("--held-out", nargs="+", default=["CD4 Naive T"], help="cell types of Kang")
    parser.add_argument("--cells", type=int, default=1_000_000, help="cells of the trial of scale")
    parser.add_argument("--null-seeds", type=int, default=200)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    results = chosen.out / "results.json"
    found = json.loads(results.read_text()) if results.is_file() else {}
    trials = {
        "simulated": lambda: simulated(chosen.out, chosen.steps),
        "null": lambda: null(chosen.null_seeds),
        "kang": lambda: {t: kang(chosen.data, chosen.out, t, chosen.steps) for t in chosen.held_out},
        "scale": lambda: scale(chosen.out, chosen.cells),
        "papalexi": lambda: papalexi(chosen.data, chosen.out, chosen.steps),
    }
    for name in chosen.only:
        started = time.monotonic()
        found[name] = {**found.get(name, {}), **trials[name]()}
        print(json.dumps({name: found[name], "seconds": round(time.monotonic() - started, 1)}, indent=1))
        results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
