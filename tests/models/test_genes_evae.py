"""Which gene is which: symbols and ids found wherever people keep them, and panels matched to them."""

import numpy as np
import pandas as pd
import pytest

from evae.models.contract_evae import EvaeError
from evae.models.genes_evae import (
    ENSEMBL_COLUMNS,
    SYMBOL_COLUMNS,
    GeneColumns,
    ensembl_id,
    gene_columns,
    match_genes,
)

IDS = [f"ENSG{i:011d}" for i in range(1, 4)]
SYMBOLS = ["TP53", "STAT1", "JAK2"]
NONE = ["", "", ""]


def test_ids_are_recognised_and_their_versions_left_off():
    for text, wanted in [
        ("ENSG00000141510", "ENSG00000141510"),
        (" ENSG00000141510.18 ", "ENSG00000141510"),
        ("ENSMUSG00000059552.14", "ENSMUSG00000059552"),
        ("ENSG00000182378.15_PAR_Y", "ENSG00000182378_PAR_Y"),
        ("FBgn0003996", "FBgn0003996"),
        ("ENSAP1", ""),  # a symbol
        ("7157", ""),
        ("TP53", ""),
        (np.nan, ""),
    ]:
        assert ensembl_id(text) == wanted, text


class TestColumns:
    @pytest.mark.parametrize("index", [SYMBOLS, IDS, [f"{i}.{g}" for g, i in enumerate(IDS)], ["0", "1", "2"]])
    def test_every_known_column(self, index):
        names = [(s, "ensembl_id") for s in (*SYMBOL_COLUMNS, "Gene Symbol", "gene.name", "HGNC_symbol")]
        names += [("symbol", i) for i in (*ENSEMBL_COLUMNS, "Ensembl_ID", "Gene ID")]
        for symbols, ids in names:
            var = pd.DataFrame({symbols: pd.Categorical(SYMBOLS), ids: [f"{i}.7" for i in IDS]}, index=index)
            for columns in (var, {name: list(var[name]) for name in var}):
                assert gene_columns(var.index, columns) == GeneColumns(SYMBOLS, IDS, SYMBOLS), (symbols, ids)

    def test_the_index_alone(self):
        assert gene_columns(SYMBOLS) == GeneColumns(SYMBOLS, NONE, SYMBOLS)
        assert gene_columns(IDS) == GeneColumns(NONE, IDS, IDS)
        mixed = gene_columns(["TP53", IDS[1], b"ERCC-00002"])
        assert mixed == GeneColumns(["TP53", "", "ERCC-00002"], ["", IDS[1], ""], ["TP53", IDS[1], "ERCC-00002"])

    def test_the_index_wins_over_a_column(self):
        assert gene_columns(SYMBOLS, {"gene_name": ["X", "Y", "Z"]}).names == SYMBOLS
        assert gene_columns(IDS, {"ensembl_id": IDS[::-1]}).ensembl_ids == IDS

    def test_columns_that_hold_something_else(self):
        found = gene_columns(SYMBOLS, {"gene_id": [7157, 6772, 3717], "feature_id": SYMBOLS, "ensembl": IDS})
        assert found.ensembl_ids == IDS
        assert gene_columns(IDS, {"gene_name": [1, 2, 3], "symbol": SYMBOLS}).names == SYMBOLS
        assert gene_columns(IDS, {"gene_name": IDS}) == GeneColumns(NONE, IDS, IDS)

    @pytest.mark.parametrize("missing", [np.nan, None, "", "nan", pd.NA])
    def test_a_missing_symbol_falls_back_to_the_id(self, missing):
        values = ["TP53", missing, missing]
        wanted = GeneColumns(["TP53", "", ""], IDS, ["TP53", *IDS[1:]])
        assert gene_columns(IDS, pd.DataFrame({"gene_name": values}, index=IDS)) == wanted
        assert gene_columns([str(v) for v in values], {"gene_ids": IDS}) == wanted
        with pytest.raises(EvaeError, match=r"gene 1 of cells\.h5ad .* neither a symbol nor an Ensembl id"):
            gene_columns(values, source="cells.h5ad")

    def test_one_symbol_of_two_genes(self):
        found = gene_columns(IDS, {"symbol": ["DUP", "DUP", "JAK2"]})
        assert found == GeneColumns(["DUP", "DUP", "JAK2"], IDS, [IDS[0], IDS[1], "JAK2"])
        assert gene_columns(["DUP", "DUP", "JAK2"], {"gene_ids": IDS}) == found
        for ids in ({}, {"gene_ids": [IDS[0], IDS[0], IDS[2]]}, {"gene_ids": [IDS[0], "", IDS[2]]}):
            with pytest.raises(EvaeError, match=r"1 gene stands more than once \('DUP'\)"):
                gene_columns(["DUP", "DUP", "JAK2"], ids)
        with pytest.raises(EvaeError, match=rf"more than once \('{IDS[0]}'\)"):
            gene_columns([f"{IDS[0]}.1", f"{IDS[0]}.2"])

    def test_an_id_of_two_genes_tells_nothing(self):
        assert gene_columns(SYMBOLS, {"gene_ids": [IDS[0], IDS[0], IDS[2]]}).ensembl_ids == ["", "", IDS[2]]

    def test_numbers_are_no_names(self):
        for index in (["0", "1", "2"], range(3), ["17", "4", "99"]):
            with pytest.raises(EvaeError, match=r"genes of cells\.h5ad are only numbered .*var\['gene_symbol'\]") as e:
                gene_columns(index, {"n_cells": [3, 2, 1]}, "cells.h5ad")
            assert "\n" not in str(e.value)


class TestMatching:
    def test_by_id_wherever_both_sides_have_one(self):
        panel = GeneColumns.of_panel(SYMBOLS, [f"{i}.2" for i in IDS])
        given = gene_columns(["STAT1", "other", "JAK2", "TP53"], {"gene_ids": [IDS[0], IDS[1], "", "ENSG00000000099"]})
        assert match_genes(panel, given).tolist() == [0, 1, 2]

    def test_by_symbol_where_one_side_has_no_id(self):
        for ids in (None, NONE, IDS):
            panel = GeneColumns.of_panel(SYMBOLS, ids)
            assert match_genes(panel, gene_columns(["JAK2", "X", "TP53"])).tolist() == [2, -1, 0]
        with_ids = gene_columns(["JAK2", "X", "TP53"], {"gene_ids": [IDS[2], "ENSG00000000099", IDS[0]]})
        assert match_genes(GeneColumns.of_panel(SYMBOLS), with_ids).tolist() == [2, -1, 0]

    def test_a_panel_may_be_of_ids(self):
        panel = GeneColumns.of_panel([f"{IDS[0]}.1", "JAK2"])
        given = gene_columns(IDS[::-1], {"symbol": SYMBOLS[::-1]})
        assert match_genes(panel, given).tolist() == [2, 0]

    def test_another_gene_of_the_same_symbol_is_another_gene(self):
        given = gene_columns([IDS[1]], {"symbol": ["DUP"]})
        assert match_genes(GeneColumns.of_panel(["DUP"], [IDS[0]]), given).tolist() == [-1]
        assert match_genes(GeneColumns.of_panel(["DUP"], [IDS[1]]), given).tolist() == [0]
        assert match_genes(GeneColumns.of_panel(["DUP"]), given).tolist() == [0]  # the only one there

    def test_an_ambiguous_symbol_is_named(self):
        given = gene_columns(IDS, {"symbol": ["DUP", "JAK2", "DUP"]})
        message = rf"1 symbol .* stands for several genes of a\.h5ad: DUP \({IDS[0]}, {IDS[2]}\); .* Ensembl ids"
        with pytest.raises(EvaeError, match=message):
            match_genes(GeneColumns.of_panel(["JAK2", "DUP"]), given, "a.h5ad")
        assert match_genes(GeneColumns.of_panel(["JAK2", IDS[2]]), given).tolist() == [1, 2]

    def test_one_gene_twice_in_the_panel(self):
        with pytest.raises(EvaeError, match=rf"'TP53' and '{IDS[0]}' of the panel are the same gene"):
            match_genes(GeneColumns.of_panel(["TP53", IDS[0]]), gene_columns(SYMBOLS, {"gene_ids": IDS}))
