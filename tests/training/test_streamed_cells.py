"""The tokenizer on cells out of an `IterableDataset` of HF `datasets`."""

from pathlib import Path

import pytest
from datasets import load_dataset
from safetensors.torch import load_file

from evae.models.contract_evae import EvaeError
from evae.training.loop import steps as loop
from evae.training.settings import load_settings
from evae.training.tokenizer import train_tokenizer

MODEL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "encoder": "mlp", "decoder": "mlp"}
MODEL |= {"n_latents": 4, "fsq_levels": [4, 4]}
SHORT = {"max_steps": 16, "batch_size": 24, "warmup_steps": 2, "save_every": 5, "eval_every": 16, "log_every": 4}
SHORT |= {"mixed_precision": "no", "learning_rate": 1e-2, "model": MODEL}


def settings(out, dataset, **changes):
    values = SHORT | {"dataset": str(dataset), "output_dir": out} | changes
    return load_settings("tokenizer", None, [f"{key}={value}" for key, value in values.items()])


def filtered(dataset, odd=1):
    """About half of the cells, so that an epoch ends within the run."""
    return load_dataset(str(dataset), split="train", streaming=True).filter(lambda c: c["library_size"] % 2 == odd)


def killed(monkeypatch, step, settings, cells):
    """Train until the batch of that step is asked for."""
    batches = []

    def die(self, source):
        batches.append(next(source))
        if len(batches) == step:
            raise KeyboardInterrupt
        return batches[-1]

    with monkeypatch.context() as patched:
        patched.setattr(loop._Loop, "_next", die)
        with pytest.raises(KeyboardInterrupt):
            train_tokenizer(settings, cells=cells)


def weights(run):
    return Path(run, "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """A run that was left alone."""
    return train_tokenizer(settings(tmp_path_factory.mktemp("whole") / "run", dataset), cells=filtered(dataset))


def test_a_stopped_run_ends_with_the_same_bytes(dataset, whole, tmp_path, monkeypatch):
    """Stopped in the first epoch and in the third."""
    for step in (8, 9):  # after the checkpoints of steps 5 and 10
        killed(monkeypatch, step, settings(tmp_path / "run", dataset, resume=step == 9), filtered(dataset))
    resumed = train_tokenizer(settings(tmp_path / "run", dataset, resume=True), cells=filtered(dataset))
    assert weights(resumed) == weights(whole)


def test_it_trains_on_these_cells(dataset, whole, tmp_path):
    other = train_tokenizer(settings(tmp_path / "other", dataset), cells=filtered(dataset, odd=0))
    plain = train_tokenizer(settings(tmp_path / "plain", dataset))
    assert len({weights(run) for run in (whole, other, plain)}) == 3
    assert load_file(other / "model.safetensors").keys() == load_file(plain / "model.safetensors").keys()


def test_a_run_goes_on_with_its_own_cells_only(dataset, tmp_path, monkeypatch):
    run = tmp_path / "run"
    killed(monkeypatch, 8, settings(run, dataset), filtered(dataset))
    with pytest.raises(EvaeError, match=r"not the one this run was started with, or .* or the cells are not"):
        train_tokenizer(settings(run, dataset, resume=True))
    with pytest.raises(EvaeError, match="the stream does not give the cells again"):
        train_tokenizer(settings(run, dataset, resume=True), cells=filtered(dataset, odd=0))


def test_bad_cells_leave_nothing_behind(dataset, tmp_path):
    out, plain = tmp_path / "run", load_dataset(str(dataset), split="train", streaming=True)
    for cells, message in (
        (list(plain), "are a list, not an IterableDataset"),
        (plain.remove_columns("counts"), "have no column counts"),
        (plain.take(0), "the stream holds no cells"),
    ):
        with pytest.raises(EvaeError, match=message):
            train_tokenizer(settings(out, dataset), cells=cells)
        assert not out.exists()
    with pytest.raises(EvaeError, match="the stream holds fewer cells than batch_size=24"):
        train_tokenizer(settings(tmp_path / "few", dataset), cells=plain.take(20))
    with pytest.raises(EvaeError, match="cells= goes with one dataset"):
        train_tokenizer(settings(out, f"[{dataset},{dataset}]"), cells=plain)
