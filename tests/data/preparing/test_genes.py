import json

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from evae.data.preparing.genes import match_panel, parse_genes, read_aliases, read_panel
from evae.data.reading.file_counts import FileCounts
from evae.models.contract_evae import EvaeError


def _file(path, genes, **var):
    adata = ad.AnnData(sp.csr_matrix(np.ones((2, len(genes)), np.float32)), var=pd.DataFrame(var, index=genes))
    adata.write_h5ad(path)
    return FileCounts(path)


def test_spellings(tmp_path, real_data):
    (tmp_path / "panel.txt").write_text("# genes\nSTAT1\n\nJAK2 \n")
    (tmp_path / "panel.json").write_text(json.dumps(["A", "B"]))
    assert parse_genes("all") == (None, None)
    assert parse_genes("hvg:2000") == (2000, None)
    assert parse_genes(tmp_path / "panel.txt") == (None, ["STAT1", "JAK2"])
    assert read_panel(tmp_path / "panel.json") == ["A", "B"]
    assert len(read_panel(real_data / "splits" / "scldm_replogle_test.json")) == 2000


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "STAT1\nSTAT1\n", "more than once"),
        ("a.txt", "\n", "names no genes"),
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"gene": []}', "no list under the key 'genes'"),
    ],
)
def test_bad_panel_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(EvaeError, match=message):
        read_panel(tmp_path / name)


def test_the_panel_of_a_dataset_folder(tmp_path):
    ids = ["", "ENSG00000000002", "ENSG00000000003"]
    pq.write_table(pa.table({"symbol": ["A", "B", "B"], "ensembl_id": ids}), tmp_path / "genes.parquet")
    for place in (tmp_path, tmp_path / "genes.parquet"):
        assert read_panel(place) == ["A", "ENSG00000000002", "ENSG00000000003"]


def test_tables_that_are_no_panel(tmp_path):
    pq.write_table(pa.table({"gene": ["A"]}), tmp_path / "other.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "cells.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n")
    for name, message in (
        ("other.parquet", "not the genes"),
        ("broken.parquet", "not the genes"),
        ("cells.h5ad", "no text"),
    ):
        with pytest.raises(EvaeError, match=message):
            read_panel(tmp_path / name)


@pytest.mark.parametrize("genes", ["hvg:", "hvg:0", "hvg:many", "nowhere.txt"])
def test_bad_arguments(genes):
    with pytest.raises(EvaeError, match=r"hvg|panel file"):
        parse_genes(genes)


def test_files_are_aligned_by_symbol_and_by_ensembl_id(tmp_path):
    first = _file(tmp_path / "a.h5ad", ["A", "B", "C"], gene_ids=[f"ENSG0000000000{i}" for i in (1, 2, 3)])
    second = _file(tmp_path / "b.h5ad", ["C", "oldB", "A"], ensembl_id=["", "ENSG00000000002.7", ""])
    panel = match_panel([first, second], None, 0.8)
    assert panel.genes == ["A", "B", "C"]
    assert panel.ensembl_ids == ["ENSG00000000001", "ENSG00000000002", "ENSG00000000003"]
    assert [p.tolist() for p in panel.positions] == [[0, 1, 2], [2, 1, 0]]


def test_absent_genes_leave_the_panel_and_coverage_says_so(tmp_path):
    first = _file(tmp_path / "a.h5ad", ["A", "B", "C", "D"])
    second = _file(tmp_path / "b.h5ad", ["D", "A", "B", "E"])
    panel = match_panel([first, second], ["D", "C", "A", "B"], 0.5)
    assert panel.genes == ["D", "A", "B"]
    assert [panel.coverage(i) for i in (0, 1)] == [1.0, 0.75]
    assert panel.matches[1]["absent_genes"] == ["C"]
    assert [p.tolist() for p in panel.positions] == [[3, 0, 1], [0, 1, 2]]
    with pytest.raises(EvaeError, match=r"b\.h5ad measures only 75% of the panel .* below 80%"):
        match_panel([first, second], ["D", "C", "A", "B"], 0.8)


def test_one_gene_named_twice_by_the_panel(tmp_path):
    source = _file(tmp_path / "a.h5ad", ["A", "B"], gene_ids=["ENSG00000000001", "ENSG00000000002"])
    with pytest.raises(EvaeError, match="the same gene"):
        match_panel([source], ["A", "ENSG00000000001"], 0.8)


HGNC = "hgnc_id\tsymbol\talias_symbol\tprev_symbol\n1\tMARCHF1\tRNF171|X1\tMARCH1\n2\tA\tX1\t\n3\tB\tA\t\n"


def test_aliases_find_what_symbol_and_id_do_not(tmp_path):
    (tmp_path / "hgnc.tsv").write_text(HGNC)
    assert read_aliases(tmp_path / "hgnc.tsv") == {"RNF171": "MARCHF1", "MARCH1": "MARCHF1"}  # X1, A are ambiguous
    old = _file(tmp_path / "old.h5ad", ["B", "MARCH1", "newA"], gene_ids=["", "", "ENSG00000000007"])
    new = _file(tmp_path / "new.h5ad", ["A", "RNF171", "B"], gene_ids=["ENSG00000000007", "", ""])
    panel = match_panel([new, old], ["A", "MARCHF1", "B", "C"], 0.5, tmp_path / "hgnc.tsv")
    assert panel.genes == ["A", "MARCHF1", "B"]
    assert [p.tolist() for p in panel.positions] == [[0, 1, 2], [2, 1, 0]]
    report = {"by_symbol": 1, "by_ensembl_id": 1, "by_alias": 1, "absent": 1, "absent_genes": ["C"]}
    assert panel.matches[1] == report
    assert panel.coverage(1) == 0.75
    with pytest.raises(EvaeError, match="measures only 50%"):
        match_panel([new, old], ["A", "MARCHF1", "B", "C"], 0.75)


@pytest.mark.parametrize("text", ["", "symbol\tname\nA\tB\n", "alias_symbol\tprev_symbol\nA\tB\n"])
def test_what_is_no_table_of_aliases(tmp_path, text):
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(EvaeError, match="needs tab-separated columns"):
        read_aliases(tmp_path / "a.tsv")
    with pytest.raises(EvaeError, match="no such file of gene aliases"):
        read_aliases(tmp_path / "none.tsv")
