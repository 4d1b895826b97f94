"""Checks on entry: what is planted is found and said, and left out only where it is named."""

import json
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from evae.common.progress import progress_bar
from evae.data.format import DatasetInfo
from evae.data.preparing.describe import CellLabels
from evae.data.preparing.knock_down import REMAINING, without_knock_down
from evae.data.preparing.prepare import prepare_dataset
from evae.data.preparing.workers import runner
from evae.data.reading.file_counts import FileCounts
from evae.models.contract_evae import EvaeError

KEYS = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "control", "progress": False}
GENES = ["STAT1", "JAK2", "IRF1", "RARE", *(f"G{i}" for i in range(16))]


@pytest.fixture
def screen() -> ad.AnnData:
    """STAT1 fell, JAK2 did not; of IRF1 there are four cells; RARE is hardly expressed; lane 3 has no control, and all
    cells of G1 are in lane 2."""
    drawn = np.random.default_rng(0)
    names = np.repeat(["control", "STAT1", "JAK2", "RARE", "G1", "STAT1+JAK2", "IRF1"], [80, 40, 40, 40, 40, 40, 4])
    rates = np.where(np.array(GENES) == "RARE", 0.01, 3.0)
    counts = drawn.poisson(rates, (len(names), len(GENES))).astype(np.float32)
    fallen = np.isin(names, ["STAT1", "STAT1+JAK2"])
    counts[fallen, 0] = drawn.poisson(0.6, fallen.sum())
    counts[names == "G1", 5] = 0
    lanes = np.array(["1", "2"])[np.arange(len(names)) % 2]
    lanes[names == "G1"] = "2"
    lanes[np.flatnonzero(names == "STAT1")[:7]] = "3"
    guides = [f"{name}-g1" for name in names]
    guides[85] = "STAT1-g1|G3-g2"
    obs = pd.DataFrame({"perturbation": names, "cell_type": "A", "lane": lanes, "guides": guides})
    obs.index = [f"c{i}" for i in range(len(obs))]
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES))


@pytest.fixture
def prepared(screen: ad.AnnData, tmp_path: Path) -> Callable[..., tuple[dict[str, dict], DatasetInfo]]:
    """The checks by their names, and the dataset."""

    def prepare(**options: object) -> tuple[dict[str, dict], DatasetInfo]:
        screen.write_h5ad(tmp_path / "screen.h5ad")
        out = tmp_path / f"data-{len(list(tmp_path.glob('data-*')))}"
        prepare_dataset(tmp_path / "screen.h5ad", out, **{**KEYS, **options})
        checks = json.loads((out / "dataset.json").read_text())["checks"]
        return {check["drop"]: check for check in checks}, DatasetInfo.load(out)

    return prepare


def test_what_is_planted_is_found_and_stays(prepared, screen):
    checks, info = prepared(batch_key="lane", guide_key="guides")
    assert sum(info.n_cells.values()) == screen.n_obs
    found = {name: (check["found"], check["cells"], check["names"]) for name, check in checks.items()}
    assert found == {
        "unlabelled": (0, 0, []),
        "several-guides": (1, 1, []),
        "few": (1, 4, ["IRF1"]),
        "no-knock-down": (2, 80, ["JAK2", "STAT1+JAK2"]),
        "batch-without-control": (1, 7, ["3"]),
        "one-batch": (1, 40, ["G1"]),
        "copies": (0, 0, []),
    }
    assert not any(check["dropped"] for check in checks.values())
    assert "of 5 that can be told" in checks["no-knock-down"]["what"]  # not of RARE, and not of four cells


@pytest.mark.parametrize(
    ("drop", "left_out"),
    [
        ("several-guides", {"STAT1": 1}),
        ("few", {"IRF1": 4}),
        ("no-knock-down", {"JAK2": 40, "STAT1+JAK2": 40}),
        ("batch-without-control", {"STAT1": 7}),
        ("one-batch", {"G1": 40}),
    ],
)
def test_only_what_is_named_is_left_out(prepared, screen, drop, left_out):
    checks, info = prepared(batch_key="lane", guide_key="guides", drop=[drop])
    assert [name for name, check in checks.items() if check["dropped"]] == [drop]
    wanted = screen.obs["perturbation"].value_counts().to_dict()
    wanted = {name: n - left_out.get(name, 0) for name, n in wanted.items() if n > left_out.get(name, 0)}
    counted = [row for kinds in info.statistics["cell_counts"].values() for row in kinds.values()]
    found = {name: sum(row.get(name, 0) for row in counted) for name in info.perturbations}
    assert found == wanted


def test_cells_without_a_label(prepared, screen):
    screen.obs.loc[screen.obs_names[100:103], "perturbation"] = np.nan
    with pytest.raises(EvaeError, match=r"is missing \(NaN\) in 3 cells; drop them first, or with drop=unlabelled"):
        prepared()
    checks, info = prepared(drop=["unlabelled"])
    assert checks["unlabelled"] == {**checks["unlabelled"], "found": 3, "dropped": True}
    assert sum(info.n_cells.values()) == screen.n_obs - 3
    _, info = prepared(where={"perturbation": "control"})  # those without a label are not asked for
    assert sum(info.n_cells.values()) == 80


def test_batches_survive_a_split_that_leaves_perturbations_out(prepared):
    """The combination goes with its held-out part, so the vocabulary is made anew."""
    _, info = prepared(batch_key="lane", split="unseen-perturbation:STAT1")
    assert "STAT1+JAK2" not in info.perturbations
    assert info.statistics["batches"] == ["1", "2", "3"]


def test_copies(prepared, screen, tmp_path):
    screen[:20].write_h5ad(tmp_path / "again.h5ad")
    screen.write_h5ad(tmp_path / "screen.h5ad")
    files = [tmp_path / "screen.h5ad", tmp_path / "again.h5ad"]
    for drop, n in (((), 20), (("copies",), 0)):
        out = prepare_dataset(files, tmp_path / f"two-{n}", drop=drop, **KEYS)
        meta = json.loads((out / "dataset.json").read_text())
        assert meta["checks"][-1]["found"] == 20
        assert sum(meta["n_cells"].values()) == screen.n_obs + n
        assert any("stand more than once" in said for said in meta["remarks"]) == bool(n)


def test_what_cannot_be_checked(prepared):
    with pytest.raises(EvaeError, match=r"unknown name of a check in drop 'fev'\. Did you mean 'few'"):
        prepared(drop=["fev"])
    with pytest.raises(EvaeError, match="drop names one-batch, which needs the obs column of the batch: batch_key"):
        prepared(drop=["one-batch"])
    with pytest.raises(EvaeError, match=r"drop names several-guides, which needs .*: guide_key"):
        prepared(drop=["several-guides"])
    checks, _ = prepared()
    assert [name for name, check in checks.items() if check["found"] is None] == [
        "several-guides",
        "batch-without-control",
        "one-batch",
    ]


def test_the_command_line(screen, run, tmp_path):
    """The labels come as a table, the names of columns and of the control are found and said."""
    screen.obs.rename(columns={"perturbation": "gene_target", "cell_type": "cell_line"}).to_csv(tmp_path / "labels.csv")
    bare = ad.AnnData(screen.X, obs=screen.obs[[]], var=screen.var)
    bare.write_h5ad(tmp_path / "bare.h5ad")
    asked = (
        "--obs",
        tmp_path / "labels.csv",
        "--batch-key",
        "lane",
        "--where",
        "cell_line=A",
        "--drop",
        "few,one-batch",
    )
    done = run("prepare", tmp_path / "bare.h5ad", *asked, "--out", tmp_path / "data")
    assert done.code == 0, done.err
    assert "perturbations are named by obs column 'gene_target'" in done.err
    assert "the control is 'control', the only usual name" in done.err
    lines = [line.split() for line in done.out.splitlines()]
    assert ["perturbations", "in", "one", "batch", "only", "1", "40", "one-batch:", "left", "out", "G1"] in lines
    assert ["cells", "with", "several", "guides", "not", "checked", "several-guides"] in lines
    assert "IRF1" not in DatasetInfo.load(tmp_path / "data").perturbations
    refused = run("prepare", tmp_path / "bare.h5ad", "--where", "cell_line", "--out", tmp_path / "other")
    assert "is no COLUMN=VALUE" in refused.err
    (tmp_path / "labels.csv").write_text("cell,perturbation\nx,control\n")
    refused = run("prepare", tmp_path / "bare.h5ad", *asked[:2], "--out", tmp_path / "other")
    assert "names no cell of" in refused.err
    assert "(there 'x', here 'c0')" in refused.err


def test_knock_down_against_dense_sums_over_two_files(tmp_path):
    """Two cell types, files with the genes in another order, a pair whose parts both count, and cells left out."""
    drawn = np.random.default_rng(1)
    genes, names = ["A", "B", "C", "D", "E"], ["control", "A", "B", "C", "A+B"]
    sources, labels, dense, kept = [], [], [], []
    for i, order in enumerate(([0, 1, 2, 3, 4], [4, 2, 1, 0])):  # the second lacks D
        n = 400
        obs = pd.DataFrame({"perturbation": drawn.choice(names, n), "cell_type": drawn.choice(["x", "y"], n)})
        obs.index = [f"{i}-{j}" for j in range(n)]
        counts = drawn.poisson(np.array([2.0, 1.0, 3.0, 1.0, 2.0])[order], (n, len(order))).astype(np.float32)
        for gene, left in (("A", 0.2), ("B", 0.9)):
            fell = obs["perturbation"].str.split("+").map(lambda parts, gene=gene: gene in parts).to_numpy()
            where = [genes[g] for g in order].index(gene)
            counts[fell, where] = drawn.binomial(counts[fell, where].astype(int), left)
        kept.append(drawn.random(n) < 0.8)
        at_rest = (obs["perturbation"] == "control").to_numpy()
        counts[~kept[-1]] = 40  # cells that do not count would change what is found
        counts[np.ix_(~kept[-1] & at_rest, [order.index(0), order.index(1)])] = 0
        var = pd.DataFrame(index=[genes[g] for g in order])
        ad.AnnData(sp.csr_matrix(counts), obs=obs, var=var).write_h5ad(tmp_path / f"{i}.h5ad", compression="gzip")
        sources.append(FileCounts(tmp_path / f"{i}.h5ad", scratch=tmp_path / f"scratch-{i}"))
        labels.append(obs)
        dense.append(pd.DataFrame(counts, columns=var.index).reindex(columns=genes, fill_value=0))
    obs, dense, kept = pd.concat(labels), pd.concat(dense).to_numpy(), np.concatenate(kept)
    codes = [obs[key].map(own.index).to_numpy() for key, own in (("perturbation", names), ("cell_type", ["x", "y"]))]
    missed, told = [], 0
    for p, name in enumerate(names[1:], 1):
        for gene in name.split("+"):
            expected = observed = 0.0
            for kind in (0, 1):
                rest, own = (kept & (codes[1] == kind) & (codes[0] == q) for q in (0, p))
                expected += dense[rest, genes.index(gene)].sum() / dense[rest].sum() * dense[own].sum()
                observed += dense[own, genes.index(gene)].sum()
            told += 1
            missed += [name] if observed > REMAINING * expected else []
    wanted = list(dict.fromkeys(missed)), told
    assert wanted == (["B", "C", "A+B"], 5)
    cells = CellLabels(*codes, names, ["x", "y"])
    run = runner(sources, None, tmp_path)
    with progress_bar(False) as bar:
        for chunk_size in (1_000, 37):
            assert without_knock_down(sources, cells, kept, chunk_size, run, bar) == wanted
