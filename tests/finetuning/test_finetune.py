"""Fine-tuning the committed checkpoint on simulated cells: names, weights, adapters, drift, and what is refused."""

import json
import logging
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import evae
from evae.data.preparing.prepare import prepare_dataset
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.data.streaming.mixture import Sources
from evae.data.streaming.onto import Onto
from evae.finetuning.settings import defaults, finetune_settings
from evae.hub.push import _public_settings, push_run
from evae.inference.checkpoint import load_checkpoint
from evae.models import EvaeConfig, EvaeFlowConfig, EvaeFlowModel, EvaeMDLMConfig, EvaeMDLMModel, EvaeModel
from evae.models.contract_evae import EvaeError

QUICK = {"max_steps": 20, "drift_cells": 8}
KEYS = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "control", "progress": False}


@pytest.fixture(scope="module")
def cells():
    """Three cell types and six perturbations, of which the committed checkpoint knows two and one."""
    return simulate_perturb_seq(n_cells=400, n_genes=60, n_cell_types=3, n_perturbations=6, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("finetuning")


@pytest.fixture(scope="module")
def dataset(cells, folder, tiny_checkpoint):
    cells.write_h5ad(folder / "cells.h5ad")
    return prepare_dataset(
        folder / "cells.h5ad", folder / "data", genes=str(tiny_checkpoint), split="random:0.1", **KEYS
    )


@pytest.fixture(scope="module")
def whole(dataset, folder, tiny_checkpoint):
    return evae.finetune(tiny_checkpoint, dataset, folder / "whole", **QUICK)


@pytest.fixture(scope="module")
def adapter(dataset, folder, tiny_checkpoint):
    pytest.importorskip("peft", reason="adapters need peft")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return evae.finetune(tiny_checkpoint, dataset, folder / "adapter", lora=4, **QUICK)


def controls_of(cells):
    return cells[cells.obs["perturbation"] == "control"].copy()


def test_old_names_keep_their_ids_and_new_ones_follow(whole, pipe, cells):
    old, new = pipe.processor, evae.pipeline(whole).processor
    assert new.perturbations[: len(old.perturbations)] == old.perturbations
    assert new.cell_types[: len(old.cell_types)] == old.cell_types
    assert set(new.perturbations) == {*old.perturbations, *cells.obs["perturbation"].unique()}
    assert set(new.cell_types) == {*old.cell_types, "type_C"}
    assert new.genes == old.genes


def test_the_tokenizer_is_frozen_and_the_prior_is_not(whole, tiny_checkpoint):
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, whole))
    same = [torch.equal(before[name], after[name]) for name in before if name.startswith("tokenizer.")]
    assert same
    assert all(same)
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])


def test_new_perturbations_in_new_cell_types_are_predicted(whole, cells):
    tuned = evae.pipeline(whole, device="cpu")
    name = tuned.processor.perturbations[-1]
    predicted = tuned.predict(controls_of(cells), name, "type_C", n_cells=7, progress=False)
    assert predicted.n_obs == 7
    assert set(predicted.obs["support"]) == {"seen together"}


def test_the_drift_is_told_as_information(dataset, tiny_checkpoint, tmp_path):
    """A fine-tuning that went well warns of nothing."""
    told = []

    class Handler(logging.Handler):
        def emit(self, record):
            told.append(record)

    root, handler = logging.getLogger("evae"), Handler()
    root.addHandler(handler)
    try:
        evae.finetune(tiny_checkpoint, dataset, tmp_path / "out", max_steps=1, drift_cells=2)
    finally:
        root.removeHandler(handler)
    assert [r.levelname for r in told if "old perturbations moved by" in r.getMessage()] == ["INFO"]
    assert not [r for r in told if r.levelno >= logging.WARNING]


def test_the_stated_drift_is_the_change_of_old_predictions(whole, pipe, cells):
    facts = json.loads((whole / "finetune.json").read_text())
    stated = {(row["cell_type"], row["perturbation"]): row for row in facts["drift"]}
    drift, noise = (np.median([row[name] for row in facts["drift"]]) for name in ("drift", "noise"))
    assert drift < noise / 2  # both models draw with the same random numbers
    old = [name for name in pipe.processor.perturbations if name != "control"]
    assert {name for _, name in stated} == set(old)
    tuned, given = evae.pipeline(whole, device="cpu"), controls_of(cells)
    options = {"n_cells": 200, "seed": 5, "library_size": "controls", "effect_transfer": 0, "progress": False}

    def mean(pipeline, name):  # other controls and other random numbers than the run's
        drawn = pipeline.predict(given, name, "type_A", **options).X.toarray()
        return np.log1p(1e4 * drawn / drawn.sum(1, keepdims=True)).mean(0)

    for name in old:
        moved = np.sqrt(np.mean((mean(tuned, name) - mean(pipe, name)) ** 2))
        assert moved < 1.5 * stated["type_A", name]["drift"]


@pytest.mark.usefixtures("all_remarks")
def test_a_finished_run_is_left_alone_and_other_settings_are_refused(whole, dataset, tiny_checkpoint, capsys):
    before = (whole / "model.safetensors").stat().st_mtime_ns
    assert evae.finetune(tiny_checkpoint, dataset, whole, **QUICK) == whole
    assert "is finished" in capsys.readouterr().err
    assert (whole / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(EvaeError, match="learning_rate was"):
        evae.finetune(tiny_checkpoint, dataset, whole, **QUICK, learning_rate=1e-5)


def test_steps_and_rates_go_by_the_number_of_cells():
    few, some, many = (defaults(n, lora=False)["max_steps"] for n in (50, 2_000, 1_000_000))
    assert few < some < many
    assert defaults(2_000, lora=True)["learning_rate"] > defaults(2_000, lora=False)["learning_rate"]
    own = {"dataset": "d", "output_dir": "o"}
    chosen = finetune_settings(2_000, {"max_steps": 40, "learning_rate": 1e-5}, own)
    assert (chosen.max_steps, chosen.learning_rate, chosen.eval_every) == (40, 1e-5, 4)


def asked(pipeline, n):
    config = pipeline.model.config
    ids = {"perturbation_ids": config.n_perturbations, "cell_type_ids": config.n_cell_types}
    torch.manual_seed(3)
    codes = torch.randint(0, config.tokenizer_config.codebook_size, (n, config.tokenizer_config.n_latents))
    return {"codes": codes, "library_size": torch.full((n,), 90.0)} | {k: torch.arange(n) % m for k, m in ids.items()}


@torch.no_grad()
def test_an_adapter_is_the_same_model_by_our_loader_by_that_of_peft_and_merged(adapter, tiny_checkpoint, tmp_path):
    import peft

    ours = evae.pipeline(adapter, device="cpu")
    given = asked(ours, 12)
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(adapter).eval()
    expected = theirs(**given).logits
    torch.testing.assert_close(ours.model(**given).logits, expected, rtol=1e-4, atol=1e-4)
    with theirs.disable_adapter():
        assert not torch.allclose(theirs(**{**given, "perturbation_ids": given["codes"][:, 0] * 0}).logits, expected)
    merged = theirs.merge_and_unload()  # by PEFT alone; the grown sizes must be in what is saved
    for number, model in enumerate((merged, ours.model)):
        model.save_pretrained(tmp_path / str(number))
        ours.processor.save_pretrained(tmp_path / str(number))
        again = evae.pipeline(tmp_path / str(number), device="cpu")
        torch.testing.assert_close(again.model(**given).logits, expected, rtol=1e-4, atol=1e-4)
    weights = adapter / "adapter_model.safetensors"
    assert weights.stat().st_size < (tiny_checkpoint / "model.safetensors").stat().st_size / 4
    assert not (adapter / "model.safetensors").exists()


def test_what_is_published_names_no_folder_of_this_machine(whole, adapter, tiny_checkpoint):
    sent, _ = push_run(whole, "me/tuned", dry_run=True)
    assert {"model.safetensors", "training/settings.yaml"} <= {name for name, _ in sent}
    assert json.loads((whole / "finetune.json").read_text())["checkpoint"] == tiny_checkpoint.name
    assert _public_settings(whole, [])["checkpoint"] == tiny_checkpoint.name
    with pytest.raises(EvaeError, match="is an adapter, which is no whole model; push what"):
        push_run(adapter, "me/tuned", dry_run=True)


def test_an_adapter_of_the_example_that_the_package_carries_finds_it(folder, tmp_path):
    pytest.importorskip("peft", reason="adapters need peft")
    cells = evae.example_controls()
    cells.obs["perturbation"] = np.where(np.arange(cells.n_obs) % 2, "new", cells.obs["perturbation"].astype(str))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    keys = KEYS | {"control": evae.pipeline("example").processor.control}
    data = prepare_dataset(tmp_path / "cells.h5ad", tmp_path / "data", genes="all", split="random:0.1", **keys)
    out = evae.finetune("example", data, tmp_path / "out", lora=2, max_steps=1, drift_cells=0)
    assert "new" in evae.pipeline(out, device="cpu").processor.perturbations


def test_an_adapter_leaves_rows_alone_that_it_does_not_train(adapter, pipe):
    before, after = pipe.model.condition, evae.pipeline(adapter, device="cpu").model.condition
    n_old = pipe.model.config.n_perturbations
    unseen = [i for i, name in enumerate(pipe.processor.perturbations) if name not in ("control", "KO-GENE0049")]
    assert n_old > len(unseen) > 0
    assert torch.equal(after.perturbation.weight[unseen], before.perturbation.weight[unseen])


def test_an_adapter_on_other_weights_or_damaged_is_refused(adapter, tiny_checkpoint, tmp_path):
    import shutil

    base, moved = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny_checkpoint, base)
    shutil.copytree(adapter, moved)
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    evae.pipeline(moved, device="cpu")
    other = load_checkpoint(base).model
    with torch.no_grad():
        other.lm_head.weight.add_(0.1)
    other.save_pretrained(base)
    with pytest.raises(EvaeError, match="has other weights than when the adapter was trained"):
        evae.pipeline(moved, device="cpu")
    shutil.rmtree(base)
    with pytest.raises(EvaeError, match=r"stands on .*base, which cannot be loaded: no such model folder"):
        evae.pipeline(moved, device="cpu")
    (moved / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(EvaeError, match="missing, truncated or damaged"):
        evae.pipeline(moved, device="cpu")


@pytest.mark.parametrize("kind", ["evae_mdlm", "evae_flow"])
def test_adapters_of_priors_that_read_controls_carry_their_tables(kind, dataset, cells, pipe, tmp_path):
    pytest.importorskip("peft", reason="adapters need peft")
    torch.manual_seed(0)
    tokenizer, classes = pipe.model.tokenizer, (EvaeMDLMConfig, EvaeMDLMModel)
    if kind == "evae_flow":
        values = pipe.model.tokenizer.config.to_dict() | {"quantizer": "gaussian", "standardize_latents": False}
        tokenizer, classes = EvaeModel(EvaeConfig(**values)), (EvaeFlowConfig, EvaeFlowModel)
    former = pipe.processor
    config = classes[0](
        tokenizer_config=tokenizer.config, hidden_size=16, num_attention_heads=2, intermediate_size=16,
        num_hidden_layers=1, n_perturbations=len(former.perturbations), n_cell_types=len(former.cell_types),
        n_effects=len(former.perturbations), source_cells=1, condition_on_effect=True, control_id=0,
    )  # fmt: skip
    prior = classes[1](config)
    prior.set_tokenizer(tokenizer)
    with torch.no_grad():
        prior.source.mean.fill_(0.25)
        prior.condition.effect.scale.fill_(3.0)
        if kind == "evae_flow":
            prior.scale.mean.fill_(0.5)
    prior.save_pretrained(tmp_path / "prior")
    former.save_pretrained(tmp_path / "prior")
    out = evae.finetune(tmp_path / "prior", dataset, tmp_path / "out", lora=True, max_steps=2, drift_cells=2)
    tuned = evae.pipeline(out, device="cpu")
    whole = evae.finetune(tmp_path / "prior", dataset, tmp_path / "whole", max_steps=1, drift_cells=0)
    for model in (tuned.model, evae.pipeline(whole, device="cpu").model):
        assert (model.source.mean == 0.25).all()  # new cells are scaled as the weights learned it
        assert model.condition.effect.scale == 3
        assert kind != "evae_flow" or (model.scale.mean == 0.5).all()
    known = ~tuned.model.condition.effect.effects().isnan().any(2)
    new = tuned.processor.perturbations.index("KO-GENE0008")
    assert known[:, new].all()  # a screen tells of it in every cell type
    name = tuned.processor.perturbations[new]
    assert tuned.predict(controls_of(cells), name, n_cells=2, progress=False, num_steps=2).n_obs == 6


def test_a_dataset_of_fewer_genes_in_another_order_gives_the_same_cells(cells, pipe, tmp_path, tiny_checkpoint):
    some = cells[:, [*range(59, 10, -1)]].copy()
    some.write_h5ad(tmp_path / "some.h5ad")
    data = prepare_dataset(tmp_path / "some.h5ad", tmp_path / "data", genes="all", split="random:0.1", **KEYS)
    sources = Sources([data], (), Onto(pipe.processor, "model"))
    batch = next(sources.cells(0, "train", 10_000))
    ours = pipe.model.tokenizer.encode(batch["counts"], batch["gene_ids"])
    plain = Sources([data])
    stored = next(plain.cells(0, "train", 10_000))
    dense = np.zeros((len(ours), len(plain.info.genes)), dtype=np.float32)
    np.add.at(dense, (np.arange(len(ours))[:, None], stored["gene_ids"].numpy()), stored["counts"].numpy())
    given = pipe.processor(dense, genes=plain.info.genes)
    assert torch.equal(ours, pipe.model.tokenizer.encode(given["counts"], given["gene_ids"]))


def test_replay_shows_the_old_cells_too(dataset, screen_dataset, tiny_checkpoint, folder, run):
    code = run(
        "finetune", tiny_checkpoint, "--dataset", dataset, "--out", folder / "replayed", "--replay", screen_dataset,
        "max_steps=30", "learning_rate=5e-3", "drift_cells=32",
    ).code  # fmt: skip
    assert code == 0
    evae.finetune(tiny_checkpoint, dataset, folder / "alone", max_steps=30, learning_rate=5e-3, drift_cells=32)
    drifts = [json.loads((folder / name / "finetune.json").read_text())["drift"] for name in ("replayed", "alone")]
    replayed, alone = (np.median([row["drift"] for row in rows]) for rows in drifts)
    assert replayed < alone


def test_the_tokenizer_is_trained_first_where_it_is_asked_for(dataset, tiny_checkpoint, folder, run):
    out = folder / "with_tokenizer"
    done = run(
        "finetune", tiny_checkpoint, "--dataset", dataset, "--out", out, "--tokenizer", "max_steps=3", "drift_cells=0"
    )
    assert done.code == 0, done.err
    before, alone, after = (
        load_file(place / "model.safetensors") for place in (tiny_checkpoint, folder / "with_tokenizer_tokenizer", out)
    )
    names = list(alone)
    assert any(not torch.equal(before[f"tokenizer.{name}"], alone[name]) for name in names)
    assert all(torch.equal(after[f"tokenizer.{name}"], alone[name]) for name in names)


def test_bad_input_is_one_line(cells, dataset, screen_dataset, tiny_checkpoint, trained_tokenizer, tmp_path, run):
    out = ["--out", tmp_path / "out"]

    def error(*words):
        done = run("finetune", *words, *out)
        assert done.code == 2
        assert len(done.err.strip().splitlines()) == 1
        assert not (tmp_path / "out").exists()
        return done.err

    assert "is a tokenizer; give a prior" in error(trained_tokenizer, "--dataset", dataset)
    known = [tiny_checkpoint, "--dataset", dataset]
    assert "unknown setting 'hidden' for a fine-tuning" in error(*known, "hidden=3")
    assert "unknown setting 'model'" in error(*known, "model.hidden_size=3")
    assert "--replay-share is 1.0" in error(*known, "--replay-share", "1", "--replay", screen_dataset)
    if evae_has_peft():
        assert "an adapter leaves the tokenizer as it is" in error(*known, "--lora", "--tokenizer")
    renamed = cells.copy()
    renamed.var_names = [f"OTHER{i}" for i in range(60)]
    renamed.write_h5ad(tmp_path / "renamed.h5ad")
    other = prepare_dataset(tmp_path / "renamed.h5ad", tmp_path / "renamed", genes="all", **KEYS)
    assert "counts over 60 genes that" in error(tiny_checkpoint, "--dataset", other)
    renamed = cells.copy()
    renamed.obs["perturbation"] = renamed.obs["perturbation"].astype(str).replace("control", "ctrl")
    renamed.write_h5ad(tmp_path / "control.h5ad")
    other = prepare_dataset(tmp_path / "control.h5ad", tmp_path / "control", genes="all", **KEYS | {"control": "ctrl"})
    assert "is 'ctrl', that of" in error(tiny_checkpoint, "--dataset", other)


def evae_has_peft():
    import importlib.util

    return importlib.util.find_spec("peft") is not None


def test_without_peft_the_extra_is_named(dataset, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EvaeError, match=r"pip install 'evae\[finetune\]'"):
        evae.finetune(tiny_checkpoint, dataset, tmp_path / "out", lora=True)
