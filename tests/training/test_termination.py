"""A signal where there is nothing to save, or a second time: the process ends at once, its folder in order."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

STOPPED = Path(__file__).with_name("stopped_run.py")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    done = subprocess.run([sys.executable, STOPPED, tmp_path_factory.mktemp("stopped")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


KEPT = ["checkpoints", "log.jsonl", "settings.yaml"]


@pytest.mark.parametrize(
    ("case", "codes", "left"),
    [
        ("first step", {143}, None),
        ("second signal, no checkpoint", {143}, None),
        ("second signal", {143}, KEPT),
        ("second signal in a checkpoint", {143}, KEPT),
        ("Ctrl-C", {30 + 130}, KEPT),  # 30 for SystemExit: an end in order
        ("Ctrl-C on two ranks", {30 + 130}, KEPT),
        ("Ctrl-C while compiling", {130}, None),
        ("second Ctrl-C", {130}, KEPT),
    ],
)
def test_the_process_ends_at_once(stopped, case, codes, left):
    results, stderr = stopped
    found = results[case]
    assert set(found["codes"]) == codes, stderr[-3000:]
    assert found["left"] == left
    assert not found["unfinished"]
    assert set(found["again"]) == {0}
    assert found["finished"]


def test_ctrl_c_says_how_to_go_on(stopped):
    _, stderr = stopped
    assert "stopped by Ctrl-C after step 7; resume=true goes on from here" in stderr
    assert "stopped by Ctrl-C before training began; the same command starts again" in stderr


def test_a_rank_that_compiles_does_not_wait_for_the_others(stopped):
    """It ends alone; the launcher, here the script, then ends the other one."""
    results, stderr = stopped
    found = results["compiling on two ranks"]
    assert 143 in found["codes"], stderr[-3000:]
    assert 0 not in found["codes"]
    assert found["left"] is None
    assert found["finished"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_model_being_compiled_stops_with_its_compilers(dataset, tmp_path):
    """The compiler of this run tells that it was called and then hangs, so the signal comes while it works."""
    begun, never = tmp_path / "begun", tmp_path / "never"
    os.mkfifo(begun)
    os.mkfifo(never)
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\necho $$ > {begun}\nexec cat {never}\n")
    compiler.chmod(0o755)
    environment = os.environ | {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    sizes = ["hidden_size=16", "num_attention_heads=2", "intermediate_size=16", "n_latents=4", "fsq_levels=[4,4]"]
    out = tmp_path / "run"
    command = [sys.executable, "-m", "evae.cli", "train", "tokenizer", f"dataset={dataset}", f"output_dir={out}"]
    command += ["compile=true", "max_steps=4", "warmup_steps=1", "batch_size=8", *(f"model.{size}" for size in sizes)]
    told = os.open(begun, os.O_RDWR | os.O_NONBLOCK)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        while not select.select([told], [], [], 0.1)[0]:
            assert process.poll() is None, process.stderr.read()
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=300)  # only a fault takes that long
    finally:
        process.kill()
        os.close(told)
    assert process.returncode == 143, stderr
    assert "stopped by SIGTERM before training began; the same command starts again" in stderr
    assert not out.exists()
    psutil.wait_procs(children, timeout=60)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
