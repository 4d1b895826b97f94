"""Cells in the layout of Tahoe-100M, streamed from the Hub into a dataset folder."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi

import evae
from evae.data.format import DatasetInfo
from evae.data.preparing.prepare import prepare_dataset
from evae.data.reading.hub_cells import _Reader
from evae.data.streaming.split_anndata import read_split
from evae.models.contract_evae import EvaeError

REPO, WRITER = "evae/tahoe", "hf_writer"
N_GENES, MARKER = 12, 1
CARD = """---
configs:
- config_name: expression_data
  data_files: data/train-*
  default: true
- config_name: sample_metadata
  data_files: metadata/sample_metadata.parquet
- config_name: gene_metadata
  data_files: metadata/gene_metadata.parquet
---
"""
SAMPLES = [
    ("smp_1", "DMSO_TF", 0.0),
    ("smp_2", "Dabrafenib", 0.05),
    ("smp_3", "Dabrafenib", 5.0),
    ("smp_4", "Erd", 0.5),
]


def rows(file: int, n: int) -> tuple[pa.Table, np.ndarray]:
    """The cells of a file, and their counts (cells, genes)."""
    drawn = np.random.default_rng(file)
    counts = drawn.poisson(0.9, (n, N_GENES))
    counts[0] = 0  # a cell that has the marker alone
    which = [SAMPLES[i] for i in drawn.integers(0, len(SAMPLES), n)]
    found = [np.flatnonzero(row) for row in counts]
    text = {
        "drug": [drug for _, drug, _ in which],
        "sample": [sample for sample, _, _ in which],
        "BARCODE_SUB_LIB_ID": [f"{i:02d}_{file}-lib_1" for i in range(n)],
        "cell_line_id": [f"CVCL_{i}" for i in drawn.integers(1, 3, n)],
        "moa-fine": ["unclear"] * n,
        "canonical_smiles": [None] * n,
        "pubchem_cid": [None] * n,
        "plate": [f"plate{file % 2 + 1}"] * n,
    }
    genes = [[MARKER, *(g + 3 for g in own[::-1])] for own in found]  # in no order; 2 is no gene
    values = [[-2.0, *(float(counts[c, g]) for g in own[::-1])] for c, own in enumerate(found)]
    lists = {"genes": pa.array(genes, pa.list_(pa.int64())), "expressions": pa.array(values, pa.list_(pa.float32()))}
    return pa.table(lists | {name: pa.array(column, pa.string()) for name, column in text.items()}), counts


@pytest.fixture
def tahoe(hub, tmp_path: Path) -> ad.AnnData:
    """The dataset on the Hub; returns its cells."""
    folder = tmp_path / "tahoe"
    for name in ("data", "metadata"):
        (folder / name).mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    tables, counts = zip(*(rows(file, 60) for file in range(3)), strict=True)
    for i, table in enumerate(tables):
        pq.write_table(table, folder / f"data/train-{i:05d}-of-00003.parquet", row_group_size=16)
    genes = {"gene_symbol": [f"G{g}" for g in range(N_GENES)], "ensembl_id": [f"ENSG{g:011d}" for g in range(N_GENES)]}
    pq.write_table(
        pa.table({**genes, "token_id": pa.array(range(3, 3 + N_GENES), pa.int64())}).take(list(range(N_GENES))[::-1]),
        folder / "metadata/gene_metadata.parquet",
    )
    samples = {"sample": [s for s, _, _ in SAMPLES], "drug": [d for _, d, _ in SAMPLES]}
    samples["drugname_drugconc"] = [f"[('{drug}', {dose}, 'uM')]" for _, drug, dose in SAMPLES]
    pq.write_table(pa.table(samples), folder / "metadata/sample_metadata.parquet")
    api = HfApi(token=WRITER)
    api.create_repo(REPO, repo_type="dataset")
    api.upload_folder(repo_id=REPO, repo_type="dataset", folder_path=folder)
    hub.requests.clear()
    obs = pa.concat_tables(tables).drop_columns(["genes", "expressions"]).to_pandas().set_index("BARCODE_SUB_LIB_ID")
    return ad.AnnData(np.concatenate(counts), obs=obs, var=pd.DataFrame(index=genes["gene_symbol"]))


def cells_of(folder: Path) -> ad.AnnData:
    return ad.concat([read_split(folder, split) for split in ("train", "validation")])


def test_from_the_command_line(tahoe, hub, run, tmp_path):
    asked = ("--hub", REPO, "--where", "plate=plate1", "--where", "cell_line_id=CVCL_1", "--batch-key", "plate")
    done = run("prepare", *asked, "--out", tmp_path / "data")
    assert done.code == 0, done.err
    assert "the control is 'DMSO_TF'" in done.err
    assert "are left out" not in done.err  # the marker is no gene that is missing
    wanted = tahoe[(tahoe.obs["plate"] == "plate1") & (tahoe.obs["cell_line_id"] == "CVCL_1")]
    wanted = wanted[wanted.X.sum(1) > 0]
    found = cells_of(tmp_path / "data")[wanted.obs_names, tahoe.var_names]
    np.testing.assert_array_equal(found.X.toarray(), wanted.X)
    assert list(found.obs["perturbation"]) == list(wanted.obs["drug"])
    info = DatasetInfo.load(tmp_path / "data")
    assert info.ensembl_ids[info.genes.index("G3")] == f"ENSG{3:011d}"
    assert not list(tmp_path.rglob("*.arrow"))  # neither a copy of the dataset nor the stream stays
    assert json.loads((tmp_path / "data/dataset.json").read_text())["sources"][0]["file"].startswith(f"{REPO} (")


def test_doses_come_from_the_samples(tahoe, tmp_path):
    keys = {"control": "DMSO_TF", "progress": False}
    with pytest.raises(EvaeError, match=r"unknown value of column 'dose_value' '7'\. "):
        prepare_dataset([], tmp_path / "data", hub=REPO, where={"dose_value": "7"}, **keys)
    assert not (tmp_path / "data.partial").exists()
    two = prepare_dataset([], tmp_path / "two", hub=REPO, where={"dose_value": ["0", "5"]}, **keys)
    assert DatasetInfo.load(two).perturbations == ["DMSO_TF", "Dabrafenib"]
    assert cells_of(two).n_obs == int((tahoe.obs["sample"].isin(["smp_1", "smp_3"]) & (tahoe.X.sum(1) > 0)).sum())
    dosed = prepare_dataset([], tmp_path / "data", hub=REPO, perturbation_key="dose_value", control="0", progress=False)
    counted = DatasetInfo.load(dosed).perturbations
    assert sorted(counted) == ["0", "0.05", "0.5", "5"]


@pytest.mark.parametrize("fault", [{"status": 503}, {"cut": 2000}], ids=["trouble", "cut"])
def test_a_stream_that_broke_off_goes_on(fault, tahoe, hub, hub_module, tmp_path):
    keys = {"hub": REPO, "control": "DMSO_TF", "progress": False}
    branch = hub.repo(REPO, "datasets").branches["main"]
    blobs = hub.repo(REPO, "datasets").commits[branch]
    stored = [f"/stored/{blobs[f'data/train-{i:05d}-of-00003.parquet'].sha256}" for i in range(3)]
    hub.faults.append(hub_module.Fault(path=stored[1], **fault))
    with pytest.raises(
        EvaeError, match=r"the Hub has trouble|broke off at 'evae/tahoe'; retry, what came whole is kept"
    ):
        prepare_dataset([], tmp_path / "data", **keys)
    assert len(list((tmp_path / "data.partial").rglob("*.arrow"))) == 1
    hub.faults.clear()
    hub.requests.clear()
    found = cells_of(prepare_dataset([], tmp_path / "data", **keys))
    assert found.n_obs == int((tahoe.X.sum(1) > 0).sum())
    asked = [path for method, path in hub.requests if method == "GET"]
    assert stored[0] not in asked
    assert stored[2] in asked


def test_what_is_not_there(tahoe, hub, tmp_path):
    keys = {"control": "DMSO_TF", "progress": False}
    for where, message in (
        ({"drug": "Aspirin"}, r"holds no cell of these values"),
        ({"dru": "Aspirin"}, r"there is no column 'dru'\. Did you mean 'drug'"),
    ):
        with pytest.raises(EvaeError, match=message):
            prepare_dataset([], tmp_path / "data", hub=REPO, where=where, **keys)
    with pytest.raises(EvaeError, match=r"unknown value of column 'drug' 'DMSO'\. Did you mean 'DMSO_TF'"):
        prepare_dataset([], tmp_path / "data", hub=REPO, control="DMSO", progress=False)
    HfApi(token=WRITER).create_repo("evae/other", repo_type="dataset")
    with pytest.raises(EvaeError, match=r"'evae/other' is not in the layout of Tahoe-100M"):
        prepare_dataset([], tmp_path / "data", hub="evae/other", **keys)
    with pytest.raises(evae.EvaeError, match="no dataset of that name on the Hub"):
        prepare_dataset([], tmp_path / "data", hub="evae/none", **keys)


def test_a_later_file_is_not_opened_once_more_for_its_columns(tahoe, hub, tmp_path):
    prepare_dataset([], tmp_path / "data", hub=REPO, control="DMSO_TF", where={"plate": "plate1"}, progress=False)
    names = [f"/data/train-{i:05d}-of-00003.parquet" for i in range(3)]
    opened = [sum(method == "GET" and path.endswith(name) for method, path in hub.requests) for name in names]
    assert opened[1] == opened[2] == opened[0] - 1


def test_a_later_file_without_a_wanted_column_is_named(tmp_path):
    folder = tmp_path / "cells"
    folder.mkdir()
    for i in range(2):
        table, _ = rows(i, 30)
        pq.write_table(table.drop_columns(["plate"][:i]), folder / f"{i}.parquet")
    doses = pd.DataFrame(SAMPLES, columns=["sample", "dose_value", "dose_unit"])
    reader = _Reader(pd.DataFrame({"token_id": range(3, 3 + N_GENES)}), doses, {"plate": ["plate1"]})
    reader.keep(str(folder / "0.parquet"), tmp_path / "0.arrow")
    with pytest.raises(EvaeError, match=r"1\.parquet has no column plate"):
        reader.keep(str(folder / "1.parquet"), tmp_path / "1.arrow")
