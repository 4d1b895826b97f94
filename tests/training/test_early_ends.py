"""The early ends of both stages outside the steps: SIGTERM before and after them, a full disk."""

import os
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from safetensors import SafetensorError

from evae.models import EvaeARForCausalLM, EvaeModel
from evae.models.contract_evae import EvaeError
from evae.training.loop.stopping import save_offending_batches
from evae.training.prior import train_prior
from evae.training.resume import run_folder
from evae.training.settings import PriorSettings, TokenizerSettings
from evae.training.tokenizer import train_tokenizer

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
TOKENIZER = SIZES | {"encoder": "mlp", "decoder": "mlp", "n_latents": 4, "fsq_levels": [4, 4]}
SHORT = {"max_steps": 2, "batch_size": 64, "warmup_steps": 1, "mixed_precision": "no"}


def tokenizer_settings(dataset, out, **changes):
    return TokenizerSettings(dataset=str(dataset), output_dir=str(out), model=TOKENIZER, **SHORT, **changes)


@pytest.fixture(scope="module")
def tokenizer(dataset, tmp_path_factory):
    return train_tokenizer(tokenizer_settings(dataset, tmp_path_factory.mktemp("runs") / "tokenizer"))


@pytest.mark.parametrize("moment", ["begin", "log", "save"])
def test_a_full_disk_is_one_line_at_any_moment(dataset, tmp_path, monkeypatch, moment):
    """Beside the checkpoints (test_survival.py): the settings, the log, the finished model."""

    def full(*args, **kwargs):
        if moment != "save":
            raise OSError(28, "No space left on device")
        Path(args[1], "model.safetensors").write_text("half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    settings = tokenizer_settings(dataset, tmp_path / "run")
    with monkeypatch.context() as patched:
        if moment == "begin":
            patched.setattr(run_folder, "write_text", full)
        elif moment == "log":
            patched.setattr(run_folder, "json", SimpleNamespace(dumps=full))
        else:
            patched.setattr(EvaeModel, "save_pretrained", full)
        with pytest.raises(EvaeError, match=r"could not write the .*run.*free space there") as caught:
            train_tokenizer(settings)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.safetensors")) or moment == "save"
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not list(tmp_path.glob("run/.partial-*/*"))
    assert (train_tokenizer(tokenizer_settings(dataset, tmp_path / "run", resume=True))).is_dir()
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
@pytest.mark.parametrize("moment", ["encoding", "saving"])
def test_a_signal_outside_the_steps_ends_in_order(
    dataset, tokenizer, tmp_path, monkeypatch, request, capfd, moment, number, name
):
    """Before the first step nothing is written; the saving of a finished model comes to its end."""
    calls = []

    def terminated(real):
        def call(*args, **kwargs):
            calls.append(real)
            os.kill(os.getpid(), number)
            return real(*args, **kwargs)

        return call

    model = SIZES | {"num_hidden_layers": 1}
    places = {"dataset": str(dataset), "tokenizer": str(tokenizer), "output_dir": str(tmp_path / "run")}
    settings = PriorSettings(model=model, **places, **SHORT)
    if number == signal.SIGINT:  # ignored where the tests run in the background of a script
        request.addfinalizer(partial(signal.signal, number, signal.signal(number, signal.default_int_handler)))
    before = signal.getsignal(number)
    owner, method = (EvaeModel, "encode") if moment == "encoding" else (EvaeARForCausalLM, "save_pretrained")
    with monkeypatch.context() as patched:
        patched.setattr(os, "_exit", sys.exit)  # see test_termination.py for processes that do end
        patched.setattr(owner, method, terminated(getattr(owner, method)))
        with pytest.raises(SystemExit) as ended:
            train_prior(settings)
    assert ended.value.code == 128 + number
    assert len(calls) == 1
    told = {"encoding": "before training began; the same command starts again", "saving": "after training ended"}
    assert f"stopped by {name} {told[moment]}" in capfd.readouterr().err
    assert signal.getsignal(number) == before
    assert (tmp_path / "run").exists() == (moment == "saving")
    assert (train_prior(settings) / "model.safetensors").is_file()


def test_ctrl_c_that_is_ignored_stays_ignored(dataset, tmp_path, monkeypatch):
    """As in the background of a script: the Ctrl-C is for the script."""
    saved = EvaeModel.save_pretrained
    interrupted = lambda *args, **kwargs: (os.kill(os.getpid(), signal.SIGINT), saved(*args, **kwargs))  # noqa: E731
    monkeypatch.setattr(EvaeModel, "save_pretrained", interrupted)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = train_tokenizer(tokenizer_settings(dataset, tmp_path / "run"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (run / "model.safetensors").is_file()


@pytest.mark.parametrize("error", [EvaeError("no shard"), FileNotFoundError("gone"), pa.ArrowInvalid("no Parquet")])
def test_cells_that_cannot_be_named_do_not_hide_the_loss(tmp_path, error):
    """The other ranks are met too: they wait for this one."""

    def unnamed(part):
        raise error

    met = []
    accelerator = SimpleNamespace(process_index=0, wait_for_everyone=lambda: met.append(True))
    run = SimpleNamespace(path=tmp_path, latest_checkpoint=lambda: None)
    settings, batches = TokenizerSettings(), [{"counts": torch.ones(2, 3)}]
    for name_cells, said in ((unnamed, "saved in"), (lambda part: [], "saved and its cells are named in")):
        with pytest.raises(EvaeError, match=f"the loss became NaN or infinite at step 7; its batch is {said} .*rank-0"):
            save_offending_batches(run, accelerator, 7, torch.tensor([torch.nan]), batches, settings, name_cells)
        assert len(list(tmp_path.glob("*.safetensors"))) == 1
        assert len(list(tmp_path.glob("*.json"))) == (name_cells is not unnamed)
    assert met == [True, True]
