"""SOMA experiments: the layout of CELLxGENE's Census, the raw counts of an AnnData, and what is no experiment."""

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp

from evae.data.preparing.prepare import prepare_dataset
from evae.data.reading.file_counts import FileCounts
from evae.data.reading.soma import SomaFrame
from evae.data.streaming.split_anndata import read_split
from evae.models.contract_evae import EvaeError

GENES = [f"ENSG{g:011d}" for g in range(6)]


def test_the_package_is_named_where_it_is_missing(tmp_path, monkeypatch):
    (tmp_path / "cells" / "__tiledb_group.tdb").mkdir(parents=True)
    monkeypatch.setitem(__import__("sys").modules, "tiledbsoma", None)
    with pytest.raises(EvaeError, match=r"cells, a SOMA experiment, needs tiledbsoma.*pip install 'evae\[soma\]'"):
        FileCounts(tmp_path / "cells")


class TestExperiments:
    @pytest.fixture(autouse=True)
    def tiledbsoma(self):
        return pytest.importorskip("tiledbsoma", reason="needs the extra soma")

    @pytest.fixture
    def census(self, tiledbsoma, tmp_path):
        """40 cells with every third number, 6 genes; `raw` and `normalized`, and no names of cells."""
        drawn = np.random.default_rng(0)
        counts = drawn.poisson(1.0, (40, 6)).astype(np.float32)
        numbers = np.arange(40, dtype=np.int64) * 3 + 5
        obs = pa.table({
            "soma_joinid": numbers,
            "disease": pa.array(drawn.choice(["normal", "flu"], 40)).dictionary_encode(),
            "cell_type": pa.array(drawn.choice(["B", "T"], 40)).dictionary_encode(),
        })  # fmt: skip
        var = pa.table(
            {"soma_joinid": np.arange(6, dtype=np.int64), "feature_id": GENES, "feature_name": list("ABCDEF")}
        )
        with tiledbsoma.Experiment.create(str(tmp_path / "census")) as made:
            made.add_new_dataframe("obs", schema=obs.schema, domain=[[0, 200]])
            rna = made.add_new_collection("ms").add_new_collection("RNA", tiledbsoma.Measurement)
            rna.add_new_dataframe("var", schema=var.schema, domain=[[0, 5]]).write(var)
            arrays = rna.add_new_collection("X")
            where = sp.coo_matrix(counts)
            for name, values in (("raw", where.data), ("normalized", np.log1p(where.data))):
                table = {"soma_dim_0": numbers[where.row], "soma_dim_1": where.col.astype(np.int64)}
                array = arrays.add_new_sparse_ndarray(name, type=pa.float32(), shape=(200, 6))
                array.write(pa.table({**table, "soma_data": values}))
        with tiledbsoma.open(str(tmp_path / "census" / "obs"), "w") as made:  # categories written before are lost
            made.write(obs)
        return tmp_path / "census", counts, numbers, obs.to_pandas()

    def test_the_census(self, census, tmp_path, keys):
        path, counts, numbers, obs = census
        with pytest.raises(EvaeError, match=r"no array 'X'. Known are 'normalized', 'raw'"):
            FileCounts(path)
        source = FileCounts(path, "auto")
        assert source.notes == [f"raw counts of {path}: in 'raw'"]
        assert (source.genes, source.gene_columns.ensembl_ids) == (list("ABCDEF"), GENES)
        np.testing.assert_array_equal(np.concatenate([b.toarray() for _, b in source.blocks(7)]), counts)
        assert list(source.cell_ids(0, 3)) == ["5", "8", "11"]
        with pytest.raises(EvaeError, match=r"fractional values.*layer=\"raw\""):
            FileCounts(path, "normalized").block(0, 5)
        source.close()
        options = keys | {"perturbation_key": "disease", "control": "normal", "layer": "raw"}
        folder = prepare_dataset(path, tmp_path / "data", chunk_size=3, **options)
        found = ad.concat([read_split(folder, split) for split in ("train", "validation")])
        order = np.searchsorted(numbers, found.obs_names.astype(int))
        assert len(order) == (counts.sum(1) > 0).sum()
        np.testing.assert_array_equal(found.X.toarray(), counts[order])
        assert list(found.obs["perturbation"]) == list(obs["disease"][order])

    def test_raw_of_an_anndata(self, tiledbsoma, tmp_path):
        import tiledbsoma.io

        counts = np.random.default_rng(1).poisson(1.0, (9, 6)).astype(np.float32)
        cells = ad.AnnData(sp.csr_matrix(counts), obs=pd.DataFrame(index=[f"c{i}" for i in range(9)]))
        cells.var_names = GENES
        cells.raw = cells.copy()
        cells = cells[:, :4].copy()
        cells.X = cells.X.log1p()
        tiledbsoma.io.from_anndata(str(tmp_path / "cells"), cells, measurement_name="RNA")
        for layer in ("raw", "auto"):
            source = FileCounts(tmp_path / "cells", layer)
            np.testing.assert_array_equal(source.block(0, 9).toarray(), counts)
            assert (source.n_genes, list(source.cell_ids(8, 9))) == (6, ["c8"])
            source.close()
        source = FileCounts(tmp_path / "cells")
        with pytest.raises(EvaeError, match="fractional"):
            source.block(0, 9)
        source.close()

    def test_a_column_without_its_categories(self, tiledbsoma, tmp_path):
        """tiledbsoma 2.3 leaves them out where a data frame is written in the session that adds it to an experiment."""
        obs = pa.table({"soma_joinid": np.arange(3), "label": pa.array(["a", "b", "a"]).dictionary_encode()})
        with tiledbsoma.Experiment.create(str(tmp_path / "cells")) as made:
            made.add_new_dataframe("obs", schema=obs.schema, domain=[[0, 9]]).write(obs)
        with tiledbsoma.open(str(tmp_path / "cells")) as stored:
            if len(stored.obs.read().concat()["label"].chunk(0).dictionary):
                pytest.skip("this version writes them")
            with pytest.raises(EvaeError, match=r"column 'label' of .*obs cannot be read"):
                SomaFrame(stored.obs, np.arange(3))["label"]

    def test_what_is_no_experiment(self, tiledbsoma, census, tmp_path):
        with pytest.raises(EvaeError, match="is a SOMA Measurement; name the folder of the whole experiment"):
            FileCounts(census[0] / "ms" / "RNA")
        with tiledbsoma.Experiment.create(str(tmp_path / "other")) as made:
            ms = made.add_new_collection("ms")
            for name in ("prot", "atac"):
                ms.add_new_collection(name, tiledbsoma.Measurement)
        with pytest.raises(EvaeError, match="measurements atac, prot, and none or several of them are called RNA"):
            FileCounts(tmp_path / "other")
