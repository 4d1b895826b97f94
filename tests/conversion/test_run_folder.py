"""What a run folder may hold and lack: every name of the state dict is used or reported, and nothing is guessed."""

import json
import math
import shutil

import anndata as ad
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evae.cli import main
from evae.conversion import convert
from evae.inference.checkpoint import load_checkpoint
from evae.models.contract_evae import EvaeError

from .conftest import CELL_TYPES, GENES, PERTURBATIONS


@pytest.fixture(scope="module")
def vae_run(write_vae):
    """Run folder of a VAE with FSQ and the cross-entropy head; not to be changed."""
    return write_vae()[1]


@pytest.fixture(scope="module")
def prior_run(write_prior):
    """Run folder of an autoregressive prior, beside its VAE's; not to be changed."""
    return write_prior("autoregressive")[1]


@pytest.fixture
def copied(tmp_path):
    """A function that copies a run folder, and the VAE's beside it, with changed settings and weights."""

    def copy(run, settings=None, weights=None):
        shutil.copytree(run.parent, tmp_path / "copy")
        folder = tmp_path / "copy" / run.name
        content = yaml.safe_load((folder / "config.yaml").read_text())
        for path, value in (settings or {}).items():
            *parts, name = path.split(".")
            part = content
            for key in parts:
                part = part[key]
            part[name] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(content))
        tensors = load_file(weights_of(folder))
        save_file(weights(tensors) if weights else tensors, weights_of(folder))
        return folder

    return copy


def weights_of(run):
    return run / "checkpoints" / (run / "checkpoints" / "latest").read_text() / "model.safetensors"


def changed(name, tensor):
    """A function that sets one tensor; None removes it."""
    return lambda tensors: {key: value for key, value in {**tensors, name: tensor}.items() if value is not None}


REFUSED = {
    "missing tensor": ({}, changed("encoder.norm_f.weight", None), r"lacks the tensor encoder\.norm_f\.weight"),
    "wrong shape": (
        {},
        changed("latent_tokens.weight", torch.zeros(5, 16)),
        r"latent_tokens\.weight is \[5, 16\] in .*safetensors, \[4, 16\] by config",
    ),
    "wrong size": ({"model.encoder.d_model": 32, "model.decoder.d_model": 32}, None, r"\[18, 16\] in .*, \[18, 32\]"),
    "wrong genes": ({"model.num_genes": 20}, None, "the run has 20 genes, the file names 18"),
    "not finite": ({}, changed("latent_tokens.weight", torch.full((4, 16), math.nan)), "holds NaN or infinity"),
    "unknown part": ({}, changed("adapter.weight", torch.zeros(2)), r"no counterpart here \(adapter\.weight\)"),
    "told decoder": ({}, changed("pert_proj_dec.weight", torch.zeros(3, 16)), "decoder is told the perturbation"),
    "another activation": ({"model.encoder.activation": "relu"}, None, r"model\.encoder\.activation .*'relu'.*'gelu'"),
    "another count input": ({"model.input_head.type": "table"}, None, r"input_head\.type .*'table'.*'mlp'"),
    "another quantizer": ({"model.quantizer.type": "rvq"}, None, "rvq"),
    "another model": ({"model.type": "scvi"}, None, "scvi"),
    "other data": ({"dataset.use_binning": "none"}, None, "the run reads counts; the head ce-quantile .* bins only"),
    "unequal coders": ({"model.decoder.nhead": 4}, None, "the encoder's n_heads is 2, the decoder's 4"),
    "no number": ({"model.encoder.nhead": "two"}, None, r"model\.encoder\.nhead in config\.yaml is 'two'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_named_and_nothing_is_written(vae_run, copied, file, tmp_path, case):
    settings, weights, named = REFUSED[case]
    with pytest.raises(EvaeError, match=named):
        convert(copied(vae_run, settings, weights), file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def spoil_pickle(run):
    weights_of(run).rename(weights_of(run).with_name("pytorch_model.bin"))


def spoil_latest(run):
    (run / "checkpoints" / "latest").write_text("../elsewhere")


SPOILED = {
    "pickle": (spoil_pickle, "pytorch_model.bin can run any code"),
    "no weights": (lambda run: weights_of(run).unlink(), "lacks model.safetensors"),
    "half a file": (
        lambda run: weights_of(run).write_bytes(weights_of(run).read_bytes()[:999]),
        "truncated or damaged",
    ),
    "no settings": (lambda run: (run / "config.yaml").unlink(), "lacks config.yaml"),
    "no YAML": (lambda run: (run / "config.yaml").write_text("a: [1"), "config.yaml cannot be read"),
    "code in YAML": (lambda run: (run / "config.yaml").write_text("a: !!python/object:os.x {}"), "cannot be read"),
    "no latest": (lambda run: (run / "checkpoints" / "latest").unlink(), "lacks checkpoints/latest"),
    "another place": (spoil_latest, "names '../elsewhere', which is no folder beside it"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_folder_is_named(vae_run, copied, file, tmp_path, case):
    spoil, named = SPOILED[case]
    run = copied(vae_run)
    spoil(run)
    with pytest.raises(EvaeError, match=named):
        convert(run, file, tmp_path / "out")


def test_heads_of_training_are_reported_as_left_out(vae_run, copied, file, tmp_path):
    heads = {"pert_classifier.0.weight": torch.zeros(3, 16), "pert_regressor.0.bias": torch.zeros(5)}
    done = convert(copied(vae_run, weights=lambda tensors: tensors | heads), file, tmp_path / "out")
    assert {name.split(".")[0] for name in done.left_out} == {
        *("pert_classifier", "pert_regressor"),
        *("log_lib_prior_mu* (1 tensors)", "log_lib_prior_std* (1 tensors)"),
    }


def test_levels_follow_from_the_number_of_codes(vae_run, copied, file, tmp_path):
    run = copied(vae_run, {"model.quantizer": {"type": "fsq", "codebook_size": 64}})
    assert convert(run, file, tmp_path / "out").model.config.fsq_levels == [8, 8]


class TestNames:
    def test_an_h5ad_gives_genes_sorted_labels_and_library_sizes(self, prior_run, file, cells, tmp_path):
        processor = convert(prior_run, file, tmp_path / "out").processor
        assert processor.genes == list(cells.var_names)
        assert (processor.perturbations, processor.cell_types) == (PERTURBATIONS, CELL_TYPES)
        assert processor.control == "non-targeting"
        sizes = np.asarray(cells.X.sum(1)).ravel()
        assert processor.library_size_quantiles[0] == sizes.min()
        assert processor.library_size_quantiles[-1] == sizes.max()
        assert processor.support("k562", "STAT1") == "unknown"

    @pytest.mark.parametrize("ending", ["json", "txt"])
    def test_a_list_of_genes_serves_a_tokenizer(self, vae_run, tmp_path, ending):
        genes = [f"G{i}" for i in range(GENES)]
        names = tmp_path / f"order.{ending}"
        names.write_text(json.dumps(genes) if ending == "json" else "\n".join(genes))
        processor = convert(vae_run, names, tmp_path / "out").processor
        assert processor.genes == genes
        assert math.isclose(processor.library_size_quantiles[50], math.exp(4), rel_tol=1e-6)  # the median of the run
        assert np.all(np.diff(processor.library_size_quantiles) >= 0)

    def test_a_prior_needs_more_names(self, prior_run, tmp_path):
        names = tmp_path / "order.json"
        known = {"genes": [f"G{i}" for i in range(GENES)], "cell_types": CELL_TYPES}
        names.write_text(json.dumps(known))
        with pytest.raises(EvaeError, match="lacks the names of perturbations"):
            convert(prior_run, names, tmp_path / "out")
        names.write_text(json.dumps({**known, "perturbations": PERTURBATIONS}))
        assert convert(prior_run, names, tmp_path / "out").processor.perturbations == PERTURBATIONS
        names.write_text(json.dumps({**known, "perturbations": [*PERTURBATIONS, "MORE"]}))
        with pytest.raises(EvaeError, match=r"pert_proj\.weight is \[3, 16\] in .*, \[4, 16\]"):
            convert(prior_run, names, tmp_path / "out")

    def test_the_first_genes_of_an_order_may_be_the_runs(self, vae_run, copied, tmp_path, file):
        run = copied(vae_run, {"dataset.num_hvg": GENES, "dataset.gene_order_path": "order.txt"})
        (tmp_path / "order.txt").write_text("\n".join(f"G{i}" for i in range(GENES + 5)))
        assert convert(run, tmp_path / "order.txt", tmp_path / "out").processor.genes[-1] == f"G{GENES - 1}"
        with pytest.raises(EvaeError, match=r"orders its genes by a list, order\.txt"):
            convert(run, file, tmp_path / "out")

    @pytest.mark.parametrize("key", ["perturbation_key", "cell_type_key"])
    def test_columns_may_have_other_names(self, prior_run, file, tmp_path, key):
        with pytest.raises(EvaeError, match="no obs column 'other'"):
            convert(prior_run, file, tmp_path / "out", **{key: "other"})

    def test_the_control_must_be_there(self, prior_run, file, tmp_path):
        with pytest.raises(EvaeError, match="'nontargeting' is not among the perturbations; name it with --control"):
            convert(prior_run, file, tmp_path / "out", control="nontargeting")

    def test_normalized_counts_need_a_median(self, write_vae, tmp_path):
        _, run = write_vae("mse")
        (run / "dataset_stats.json").unlink()
        (tmp_path / "order.json").write_text(json.dumps([f"G{i}" for i in range(GENES)]))
        with pytest.raises(EvaeError, match="median library size"):
            convert(run, tmp_path / "order.json", tmp_path / "out")


class TestPriorsParts:
    def test_the_vaes_run_may_be_named(self, prior_run, copied, file, tmp_path):
        run = copied(prior_run)
        vae = (run.parent / "vae").rename(tmp_path / "moved")
        with pytest.raises(EvaeError, match=r"trained/elsewhere/vae, is not there.*--tokenizer"):
            convert(run, file, tmp_path / "out")
        with pytest.raises(EvaeError, match=r"type autoregressive, not the prior's VAE"):
            convert(run, file, tmp_path / "out", tokenizer=run)
        assert convert(run, file, tmp_path / "out", tokenizer=vae).model.config.model_type == "evae_ar"

    def test_features_must_be_given_and_fit(self, write_prior, prior_run, file, tmp_path):
        _, run = write_prior("autoregressive", n_features=5)
        with pytest.raises(EvaeError, match="knows perturbations by feature vectors"):
            convert(run, file, tmp_path / "out")
        table = tmp_path / "table.csv"
        table.write_text("name,a,b\nSTAT1,1,2\n")
        with pytest.raises(EvaeError, match="have 2 values, those of the run 5"):
            convert(run, file, tmp_path / "out", features=table)
        table.write_text("name,a,b,c,d,e\nOTHER,1,2,3,4,5\n")
        with pytest.raises(EvaeError, match="no vector of any perturbation"):
            convert(run, file, tmp_path / "out", features=table)
        with pytest.raises(EvaeError, match="does not know perturbations by feature vectors"):
            convert(prior_run, file, tmp_path / "out", features=table)


def test_the_command_converts_and_the_result_predicts(prior_run, file, tmp_path, capsys):
    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return ended.value.code

    out, predicted = tmp_path / "model", tmp_path / "predicted.h5ad"
    assert run("convert", prior_run, "--genes", file, "--out", out) == 0
    assert "became EvaeARForCausalLM" in " ".join(capsys.readouterr().out.split())
    assert run("convert", prior_run, "--genes", file, "--out", out) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run("convert", prior_run, "--genes", file, "--out", out, "--overwrite") == 0
    asked = ("--perturbation", "STAT1", "--cell-type", "k562", "--n-cells", 5)
    assert run("predict", out, "--controls", file, "--perturbation-key", "gene", *asked, "--out", predicted) == 0
    cells = ad.read_h5ad(predicted)
    assert cells.shape == (5, GENES)
    assert set(cells.obs["perturbation"]) == {"STAT1"}
    assert load_checkpoint(out).processor.genes == list(cells.var_names)
