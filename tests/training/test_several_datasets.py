"""Both stages over two datasets with weights."""

import json

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from evae.data.preparing.prepare import prepare_dataset
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.data.streaming.loader import DatasetInfo
from evae.data.streaming.mixture import Sources
from evae.models import EvaeARForCausalLM, EvaeProcessor
from evae.models.contract_evae import EvaeError
from evae.training.loop import steps as loop
from evae.training.prior import train_prior
from evae.training.settings import load_settings
from evae.training.tokenizer import train_tokenizer

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
TOKENIZER = SIZES | {"encoder": "mlp", "decoder": "mlp", "n_latents": 4, "fsq_levels": [4, 4]}
PRIOR = SIZES | {"num_hidden_layers": 1}
SHORT = {"max_steps": 12, "batch_size": 24, "warmup_steps": 2, "save_every": 5, "eval_every": 6, "log_every": 4}
SHORT |= {"mixed_precision": "no", "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def datasets(dataset, tmp_path_factory):
    """The 300 simulated cells, and 200 others over the same genes in a cell type of their own."""
    place = tmp_path_factory.mktemp("second")
    cells = simulate_perturb_seq(n_cells=200, n_genes=40, n_cell_types=1, n_perturbations=3, seed=5)
    cells.obs["cell_type"] = "type_Q"
    cells.write_h5ad(place / "cells.h5ad")
    keys = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "control"}
    return [str(dataset), str(prepare_dataset(place / "cells.h5ad", place / "other", **keys, progress=False))]


def settings(kind, out, datasets, **changes):
    values = SHORT | {"dataset": datasets, "output_dir": out, "dataset_weights": [2, 1]} | changes
    return load_settings(kind, None, [f"{key}={value}" for key, value in values.items()])


def killed_then_resumed(monkeypatch, train, make):
    """Train up to step 7, from the checkpoint before on to the end."""
    batches = []

    def die(self, source):
        batches.append(next(source))
        if len(batches) == 8:
            raise KeyboardInterrupt
        return batches[-1]

    with monkeypatch.context() as patched:
        patched.setattr(loop._Loop, "_next", die)
        with pytest.raises(KeyboardInterrupt):
            train(make())
    return train(make(resume=True))


@pytest.mark.parametrize("kind", ["tokenizer", "prior"])
def test_two_datasets_train_and_resume_exactly(datasets, tmp_path, monkeypatch, kind):
    train, model = (train_tokenizer, TOKENIZER) if kind == "tokenizer" else (train_prior, PRIOR)
    more = {"model": model}
    if kind == "prior":
        shape = {"model": TOKENIZER, "max_steps": 2}
        more["tokenizer"] = train_tokenizer(settings("tokenizer", tmp_path / "tokenizer", datasets, **shape))
        more["thinned_copies"] = 1
    whole = train(settings(kind, tmp_path / "whole", datasets, **more))
    again = killed_then_resumed(
        monkeypatch, train, lambda **flags: settings(kind, tmp_path / "killed", datasets, **more, **flags)
    )
    one, two = (load_file(run / "model.safetensors") for run in (whole, again))
    assert all((one[name] == two[name]).all() for name in one)
    assert "type_Q" in EvaeProcessor.from_pretrained(whole).cell_types
    if kind == "prior":
        assert EvaeARForCausalLM.from_pretrained(whole).config.n_cell_types == 3


def test_weights_are_a_setting_of_the_run(datasets, tmp_path):
    train_tokenizer(settings("tokenizer", tmp_path / "run", datasets, model=TOKENIZER, max_steps=2))
    (tmp_path / "run" / "model.safetensors").unlink()
    changed = {"model": TOKENIZER, "max_steps": 2, "dataset_weights": [1, 1], "resume": True}
    with pytest.raises(EvaeError, match=r"dataset_weights was \[2.0, 1.0\] and is \[1.0, 1.0\]"):
        train_tokenizer(settings("tokenizer", tmp_path / "run", datasets, **changed))


@pytest.mark.parametrize(("kind", "several"), [("tokenizer", True), ("prior", True), ("tokenizer", False)])
def test_a_loss_that_is_no_number_names_its_cells(datasets, tmp_path, monkeypatch, kind, several):
    """The named row of the named file holds the very cell that was saved."""
    given = datasets if several else datasets[0]
    more = {"model": TOKENIZER, "gradient_accumulation_steps": 2} | ({} if several else {"dataset_weights": []})
    if kind == "prior":
        run = train_tokenizer(settings("tokenizer", tmp_path / "t", datasets, model=TOKENIZER, max_steps=2))
        more |= {"model": PRIOR, "tokenizer": run, "thinned_copies": 1}
    whole = loop.build_optimizer

    def broken(model, *args):
        optimizer, calls = whole(model, *args), []

        def break_after(*ignored):
            calls.append(0)
            if len(calls) == 6:  # so that the seventh step has no number; the log looks at the eighth
                next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))

        optimizer.register_step_post_hook(break_after)
        return optimizer

    monkeypatch.setattr(loop, "build_optimizer", broken)
    train = train_tokenizer if kind == "tokenizer" else train_prior
    with pytest.raises(EvaeError, match=r"its cells are named in .*00000007-rank-00000.json"):
        train(settings(kind, tmp_path / "run", given, **more))
    (path,) = (tmp_path / "run").glob("nonfinite-*.json")
    saved, named = load_file(path.with_suffix(".safetensors")), json.loads(path.read_text())
    united = Sources(given if several else [given], [2, 1] if several else []).info
    for part, cells in named.items():
        columns = (saved[f"{part}/{name}"] for name in ("perturbation_ids", "cell_type_ids", "library_size"))
        assert len({cell["file"].rsplit("/data/")[0] for cell in cells}) == (2 if several else 1)
        for cell, perturbation, kind_id, size in zip(cells, *columns, strict=True):
            row = pq.read_table(cell["file"]).slice(cell["row"], 1).to_pylist()[0]
            own = DatasetInfo.load(cell["file"].rsplit("/data/")[0])
            assert row["cell_id"] == cell["cell"]
            assert own.perturbations[row["perturbation"]] == united.perturbations[int(perturbation)]
            assert own.cell_types[row["cell_type"]] == united.cell_types[int(kind_id)]
            assert row["library_size"] == int(size)  # over all genes, which here are the panel


def test_the_order_of_the_datasets_stays(datasets, tmp_path):
    train_tokenizer(settings("tokenizer", tmp_path / "run", datasets, model=TOKENIZER, max_steps=2))
    (tmp_path / "run" / "model.safetensors").unlink()
    swapped = settings("tokenizer", tmp_path / "run", datasets[::-1], model=TOKENIZER, max_steps=2, resume=True)
    with pytest.raises(EvaeError, match="the dataset or the tokenizer is not the one"):
        train_tokenizer(swapped)


@pytest.mark.parametrize(("values", "message"), [("[a, 3]", "dataset is 3; give text"), ("7", "dataset is 7")])
def test_a_dataset_is_a_name_or_several(values, message):
    with pytest.raises(EvaeError, match=message):
        load_settings("tokenizer", None, [f"dataset={values}", "output_dir=out"])
