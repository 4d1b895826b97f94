"""Feature tables: vectors, structures of drugs, and the table of genes that the package makes."""

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evae.models.contract_evae import EvaeError
from evae.training.feature_tables import BITS, read_feature_table

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_gene_features.py"
DRUGS = {
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "salicylic acid": "OC(=O)c1ccccc1O",
    "caffeine": "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
}


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_structures_become_fingerprints(tmp_path, kind):
    """Those of RDKit itself; alike molecules have alike ones."""
    chem = pytest.importorskip("rdkit.Chem", reason="rdkit is in the extra drugs")
    fingerprints = pytest.importorskip("rdkit.Chem.rdFingerprintGenerator")
    frame = pd.DataFrame({"drug": list(DRUGS), "dose": "10 uM", "SMILES": list(DRUGS.values())})
    path = tmp_path / f"drugs.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pandas(frame), path)
    else:
        frame.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    names, vectors, source = read_feature_table(path)
    assert names == list(DRUGS)
    assert vectors.shape == (3, BITS)
    assert set(np.unique(vectors)) == {0.0, 1.0}
    assert source == f"{path.name}: Morgan fingerprints of radius 2, 2048 bits"
    generator = fingerprints.GetMorganGenerator(radius=2, fpSize=BITS)
    for vector, smiles in zip(vectors, DRUGS.values(), strict=True):
        assert set(np.flatnonzero(vector)) == set(generator.GetFingerprint(chem.MolFromSmiles(smiles)).GetOnBits())
    shared = vectors @ vectors.T
    assert shared[0, 1] > shared[0, 2]


def test_structures_that_cannot_be_read_are_named(tmp_path, capfd):
    pytest.importorskip("rdkit", reason="rdkit is in the extra drugs")
    (tmp_path / "drugs.csv").write_text("drug,smiles\nA,CCO\nB,no structure\nC,\n")
    with pytest.raises(EvaeError, match=r"2 structures of .*drugs.csv cannot be read by RDKit as SMILES: B, C"):
        read_feature_table(tmp_path / "drugs.csv")
    assert capfd.readouterr() == ("", "")  # RDKit's own words are kept back


def test_a_pickle_is_refused_unread(tmp_path):
    class Loud:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was run",))

    for name, mend in (("GenePT.pickle", "as pickle loads it"), ("esm2.pt", "torch.load.*scGPT.*vocab.json")):
        (tmp_path / name).write_bytes(pickle.dumps(Loud()))
        with pytest.raises(EvaeError, match=rf"is a pickle.*numpy\.savez.*{mend}") as caught:
            read_feature_table(tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "was run").exists()


def annotation(gene, term, relation="involved_in", evidence="IDA"):
    fields = ["UniProtKB", "P0", gene, relation, term, "PMID:1", evidence, "", "P", "", "", "protein", "taxon:9606"]
    return "\t".join([*fields, "20260101", "UniProt", "", ""])


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("make_gene_features", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_genes_with_the_same_annotations_are_alike(script, tmp_path, capsys):
    terms = {"A": "12", "B": "12", "C": "34", "D": "34", "E": "1", "F": "3", "G": "25", "H": "45"}
    lines = ["!gaf-version: 2.2", *(annotation(gene, f"GO:{t}") for gene, own in terms.items() for t in own)]
    lines += [annotation("A", "GO:3", "NOT|involved_in"), annotation("C", "GO:1", evidence="ND")]
    lines += [annotation("ALONE", "GO:9")]
    (tmp_path / "human.gaf").write_text("\n".join(lines) + "\n")
    out = tmp_path / "genes.npz"
    script.main(["--annotations", str(tmp_path / "human.gaf"), "--out", str(out), "--features", "4"])
    names, vectors, source = read_feature_table(out)
    assert set(names) <= set(terms)  # ALONE shares no term
    assert source == "genes.npz: annotations of the Gene Ontology (CC BY 4.0), human.gaf"
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    of = dict(zip(names, vectors, strict=True))
    np.testing.assert_allclose(of["A"], of["B"], atol=1e-5)
    assert of["A"] @ of["B"] > of["A"] @ of["C"]
    assert f"{len(names)} genes" in capsys.readouterr().out


def test_no_annotations_are_refused(script, tmp_path):
    (tmp_path / "other.gaf").write_text("gene,term\nA,1\n")
    with pytest.raises(SystemExit, match="holds no annotations in GAF 2"):
        script.main(["--annotations", str(tmp_path / "other.gaf"), "--out", str(tmp_path / "x.npz")])
    assert not (tmp_path / "x.npz").exists()
