"""scripts/demo.sh: the commands it gives, how it goes on, what it refuses; and that these commands go the whole way."""

import json
import os
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata as ad
import pytest

DEMO = Path(__file__).parents[2] / "scripts" / "demo.sh"
NOTE = """#!/usr/bin/env bash
case "$*" in *--dry-run) [ "$2" != "${WRONG:-}" ] || { echo "error: $SAID" >&2; exit 2; }; exit ;; esac
printf '%s\\n' "$*" >>"$CALLS"
case "$1" in
    simulate) echo cells >"$2" ;;
    prepare) [ -z "${FAULT:-}" ] || exit "$FAULT"; mkdir -p "${@: -1}" ;;
    train) [ "$2" != "${STOP:-}" ] || exit 2; [ -z "${PIDS:-}" ] || { echo $$ >"$PIDS"; exec sleep 100; } ;;
esac
"""


@pytest.fixture
def demo(tmp_path):
    """Run the demo on an `evae` that notes its arguments; returns the process and the noted commands."""
    stub = tmp_path / "evae"
    stub.write_text(NOTE)
    stub.chmod(0o755)

    def start(*arguments: object, **environment: str) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
        calls = tmp_path / "calls"
        calls.write_text("")
        done = subprocess.run(
            ["bash", DEMO, "--out", "out", *map(str, arguments)],
            cwd=tmp_path, env=os.environ | {"EVAE": str(stub), "CALLS": str(calls)} | environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done, [line.split() for line in calls.read_text().splitlines()]

    return start


def test_the_commands_go_the_whole_way(demo, run, screen_file, small_settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "umap", None)  # it compiles itself for a minute
    settings = [f"--{stage}={setting}" for stage in small_settings for setting in small_settings[stage]]
    settings = [text.replace(", ", ",") for text in settings]
    done, _ = demo("--data", screen_file, "--hold-out-cell-type", "type_A", *settings)
    assert done.returncode == 0, done.stderr
    shown = [shlex.split(line)[2:] for line in done.stdout.splitlines() if line.startswith("$ evae ")]
    assert [words[0] for words in shown] == ["prepare", "train", "train", "predict", "evaluate"]
    assert "1/5" in done.stdout
    (tmp_path / "out" / "dataset").rmdir()  # the stub's
    for words in shown:
        outcome = run(*words)
        assert outcome.code == 0, outcome.err
    for text in ("model", "tokenizer alone", "control copy", "real split half", "report.html"):
        assert text in outcome.out
    assert set(ad.read_h5ad(tmp_path / "out" / "predicted.h5ad").obs["cell_type"]) == {"type_A"}
    assert json.loads((tmp_path / "out" / "evaluation" / "tokenizer_alone.json").read_text())["summary"]


def test_simulated_cells_and_small_models_unless_told_otherwise(demo, tmp_path):
    done, calls = demo("--seed", 7)
    assert [words[0] for words in calls] == ["simulate", "prepare", "train", "train", "predict", "evaluate"]
    assert "6/6" in done.stdout
    assert {"--split auto", "--genes auto"} <= {" ".join(calls[1][i : i + 2]) for i in range(len(calls[1]))}
    for words in calls[2:4]:
        assert "--config tiny" in " ".join(words)
        assert "seed=7" in words
    (tmp_path / "cells.h5ad").write_text("cells")
    _, calls = demo("--data", "cells.h5ad", "--out", "other", "--prior", "max_steps=3")
    assert calls[0][1] == str(tmp_path / "cells.h5ad")
    assert all("--config small" in " ".join(words) for words in calls[1:3])
    assert ("max_steps=3" in calls[1], "max_steps=3" in calls[2]) == (False, True)


def test_it_goes_on_with_the_same_data_only(demo, tmp_path):
    stopped, _ = demo(STOP="prior")
    assert stopped.returncode == 2
    assert stopped.stderr == ""  # the training itself has said why
    again, calls = demo("--prior", "max_steps=9")  # the training itself compares its settings
    assert again.returncode == 0
    assert [words[0] for words in calls] == ["train", "train", "predict", "evaluate"]
    assert "made before: out/dataset" in again.stdout
    other, calls = demo("--seed", "1", "--genes", "all")
    assert (other.returncode, calls) == (2, [])
    assert other.stderr.startswith("error: out holds a demo with another --genes --seed; ")
    anew, calls = demo("--seed", "1", "--overwrite")
    assert anew.returncode == 0
    assert len(calls) == 6


@pytest.mark.parametrize("stage", ["tokenizer", "prior"])
def test_wrong_settings_are_seen_before_anything_is_trained(demo, stage):
    """And the advice is that of the fault."""
    unknown, calls = demo(WRONG=stage, SAID="unknown setting 'max_step'")
    assert unknown.returncode == 2
    assert unknown.stderr == "error: unknown setting 'max_step'\n"
    assert [words[0] for words in calls] == ["simulate", "prepare"]
    other, calls = demo(WRONG=stage, SAID="a run in out cannot be resumed with other settings (seed was 0 and is 1)")
    assert other.returncode == 2
    assert "choose another --out, or start anew with --overwrite" in other.stderr
    assert calls == []
    assert demo()[0].returncode == 0


def test_it_leaves_nothing_of_refused_data_and_all_of_a_stopped_one(demo, tmp_path):
    refused, calls = demo(FAULT="2")
    assert refused.returncode == 2
    assert [words[0] for words in calls] == ["simulate", "prepare"]
    assert not (tmp_path / "out").exists()
    stopped, _ = demo(FAULT="143")
    assert stopped.returncode == 143
    assert demo()[0].returncode == 0


def test_a_signal_stops_the_command_too(demo, tmp_path):
    pids = tmp_path / "pids"
    os.mkfifo(pids)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(demo, PIDS=str(pids))
        child = int(pids.read_text())  # it runs
        script = int(Path(f"/proc/{child}/stat").read_text().split()[3])
        os.kill(script, signal.SIGTERM)
        assert running.result(timeout=60)[0].returncode == 143
    assert not Path(f"/proc/{child}").exists()


def test_it_leaves_foreign_folders_alone(demo, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    for flag in ([], ["--overwrite"]):
        done, calls = demo(*flag)
        assert (done.returncode, calls) == (2, [])
        assert "holds other files" in done.stderr
    assert (tmp_path / "out" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dta", "x"], "error: there is no option '--dta'"),
        (["--data"], "error: --data needs a value."),
        (["--data", "no.h5ad"], "error: no such file: "),
    ],
)
def test_bad_options(demo, tmp_path, arguments, message):
    done, calls = demo(*arguments)
    assert (done.returncode, calls) == (2, [])
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
