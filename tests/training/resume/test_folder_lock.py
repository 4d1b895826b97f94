"""One training at a time in a run folder, and none that is dead."""

import os
import signal
import time

import pytest

from evae.models.contract_evae import EvaeError
from evae.training.resume.folder_lock import FolderLock
from evae.training.settings import TokenizerSettings
from evae.training.tokenizer import train_tokenizer

MODEL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "n_latents": 4, "fsq_levels": [4, 4]}
MODEL |= {"encoder": "mlp", "decoder": "mlp"}


def settings(dataset, out, **changes):
    values = {"max_steps": 2, "batch_size": 64, "warmup_steps": 1, "model": MODEL} | changes
    return TokenizerSettings(dataset=str(dataset), output_dir=str(out), **values)


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_a_second_training_is_refused_in_one_line(dataset, tmp_path, flags):
    train_tokenizer(settings(dataset, tmp_path / "run"))
    lock = FolderLock(tmp_path / "run")
    assert lock.take() is None
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(EvaeError, match=rf"another training works in .*run \(process {os.getpid()} on ") as caught:
        train_tokenizer(settings(dataset, tmp_path / "run", **flags))
    assert "\n" not in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    lock.release()
    train_tokenizer(settings(dataset, tmp_path / "run", **flags))
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_fresh_folder_is_taken_too(dataset, tmp_path):
    lock = FolderLock(tmp_path / "new" / "run")
    assert lock.take() is None
    with pytest.raises(EvaeError, match="another training works in"):
        train_tokenizer(settings(dataset, tmp_path / "new" / "run"))
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_bad_input_leaves_no_folder_behind(dataset, tmp_path):
    with pytest.raises(EvaeError, match="batch_size"):
        train_tokenizer(settings(dataset, tmp_path / "new" / "run", batch_size=10_000))
    assert list(tmp_path.iterdir()) == []


def test_a_dead_process_holds_nothing(tmp_path):
    """Not even where a worker that it forked lives on."""
    told, tell = os.pipe()
    holder = os.fork()
    if holder == 0:
        lock = FolderLock(tmp_path)
        lock.take()
        if os.fork() == 0:  # by now the worker has let go of the lock
            os.write(tell, f"{os.getpid()}\n".encode())
        time.sleep(60)
        os._exit(0)
    worker = int(os.read(told, 100))
    try:
        assert FolderLock(tmp_path).take() == f"process {holder} on {os.uname().nodename}"
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        lock = FolderLock(tmp_path)
        assert lock.take() is None
        lock.release()
    finally:
        os.kill(worker, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_only_be_read_is_not_in_the_way(dataset, tmp_path, monkeypatch):
    run = train_tokenizer(settings(dataset, tmp_path / "run"))
    run.chmod(0o500)
    try:
        assert train_tokenizer(settings(dataset, tmp_path / "run")) == run  # it is finished
    finally:
        run.chmod(0o700)
