"""Vectors of genes by a protein language model: tiny, random ESMC and ESM2, and FASTA files as they are found."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from evae.training.feature_tables import read_feature_table

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_protein_features.py"
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LETTERS = "LAGVSERTIDPKQNFYMHWCXBUZO.-"
FASTA = """>sp|P1|STAT1_HUMAN Signal transducer OS=Homo sapiens OX=9606 GN=STAT1 PE=1 SV=2
MSQWYELQQLDSKFLEQVHQLYDD
SFPMEIRQYLAQWLEKQD
>tr|P2|P2_HUMAN Shorter OS=Homo sapiens OX=9606 GN=STAT1 PE=1 SV=1
MSQWYE
>ENSP1 pep gene:ENSG1 gene_symbol:JAK2 description:Tyrosine kinase
mgmaCLTMTEMEGTSTSSIYQNG*
>IRF1
MPITRMRMRPWLEMQINSNQIPGLIWINKEEMIFQIPWKHAAKHGWDINKDACLFRSWAIHTGRYKAGEK
"""


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_protein_features", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["esmc", "esm"])
def folder(request, tmp_path):
    """A checkpoint as published, with a head for masked amino acids."""
    place = tmp_path / request.param
    torch.manual_seed(0)
    if request.param == "esmc":
        if not hasattr(transformers, "EsmcConfig"):
            pytest.skip("this transformers has no ESMC")
        transformers.EsmcTokenizer().save_pretrained(place)
        model = transformers.EsmcForMaskedLM(transformers.EsmcConfig(**SIZES))
    else:
        words = ["<cls>", "<pad>", "<eos>", "<unk>", *LETTERS, "<null_1>", "<mask>"]
        (tmp_path / "vocab.txt").write_text("\n".join(words))
        transformers.EsmTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(place)
        special = {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1, "token_dropout": True}
        places = {"position_embedding_type": "rotary", "max_position_embeddings": 1026}
        model = transformers.EsmForMaskedLM(transformers.EsmConfig(**SIZES, **special, **places))
    model.save_pretrained(place)
    return place


def test_vectors_are_means_over_amino_acids(script, folder, tmp_path, capsys):
    fasta = tmp_path / "proteins.fasta.gz"
    with gzip.open(fasta, "wt") as file:
        file.write(FASTA)
    out = tmp_path / "genes.npz"
    script.main([str(fasta), "--model", str(folder), "--out", str(out), "--residues", "60"])
    assert "3 genes, 16 features, 1 cut at 60 amino acids" in capsys.readouterr().out
    names, vectors, source = read_feature_table(out)
    assert names == ["STAT1", "JAK2", "IRF1"]
    expected = f"genes.npz: mean last hidden state of {folder.name} over the proteins of proteins.fasta.gz"
    assert source == expected
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sequences = ["MSQWYELQQLDSKFLEQVHQLYDDSFPMEIRQYLAQWLEKQD", "MGMACLTMTEMEGTSTSSIYQNG", FASTA.split()[-1][:60]]
    for vector, sequence in zip(vectors, sequences, strict=True):  # one by one, so that nothing is padded
        with torch.no_grad():
            states = model(**tokenizer(sequence, return_tensors="pt")).last_hidden_state[0]
        assert len(states) == len(sequence) + 2
        np.testing.assert_allclose(vector, states[1:-1].mean(0).numpy(), atol=1e-5)


def test_what_cannot_be_read_is_refused(script, folder, tmp_path):
    (tmp_path / "proteins.fasta").write_text(FASTA)
    (tmp_path / "table.csv").write_text("gene,sequence\nA,MK\n")
    (tmp_path / "strange.fasta").write_text(">A\nMK4\n")
    known = [str(tmp_path / "proteins.fasta"), "--model", str(folder), "--out", str(tmp_path / "x.npz")]
    for arguments, message in (
        ([*known, "--genes", "STAT1,JAK"], "has no protein of 'JAK'. Did you mean 'JAK2'"),
        ([str(tmp_path / "table.csv"), *known[1:]], "is no FASTA file"),
        ([str(tmp_path / "strange.fasta"), *known[1:]], "the record '>A' of .* is no protein"),
        ([known[0], "--model", str(tmp_path), *known[3:]], "cannot be loaded|is no"),
        ([*known[:4], str(tmp_path / "x.csv")], "name an .npz file"),
    ):
        with pytest.raises(SystemExit, match=message) as caught:
            script.main(arguments)
        assert len(str(caught.value).splitlines()) == 1
    weights = folder / "model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({k: v for k, v in load_file(weights).items() if "layer.1." not in k and "layers.1." not in k}, weights)
    with pytest.raises(SystemExit, match="has no weights for"):
        script.main(known)
    assert not (tmp_path / "x.npz").exists()
