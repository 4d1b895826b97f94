"""`scripts/reproduce.py`: a published benchmark from its files to the Hub, rehearsed with simulated cells."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard

from evae.data.preparing.published_sets import SETS
from evae.data.streaming.loader import DatasetInfo
from evae.data.streaming.split_anndata import read_split

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
WRITER = "hf_writer"


@pytest.fixture(scope="module")
def reproduce():
    spec = importlib.util.spec_from_file_location("reproduce", SCRIPTS / "reproduce.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_replogle_from_its_files_to_the_hub(hub, tmp_path):
    """The command of a person with a GPU, and one word more."""
    command = [sys.executable, str(SCRIPTS / "reproduce.py"), "replogle", "--rehearse", "--out", str(tmp_path / "out")]
    command += ["--push", "evae/replogle-ar", "--dataset", "evae/replogle"]
    own = {"HF_HUB_OFFLINE": "0", "HF_TOKEN": WRITER, "NUMBA_DISABLE_JIT": "1"}  # the last: umap-learn compiles long
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\| W2 ↓ \| [\d.]+ \| 7.87 \| 11.29 \|", done.stdout)  # ours beside the published
    files = hub.repo("evae/replogle-ar").files()
    assert files["README.md"].decode() == (tmp_path / "out" / "README.md").read_text()
    assert ModelCard(files["README.md"].decode()).data.datasets == ["evae/replogle"]
    entries = yaml.safe_load(files[".eval_results/evae.yaml"])
    assert {entry["dataset"]["task_id"].split("_")[0] for entry in entries} >= {"paper", "robust"}
    assert entries[0]["dataset"]["revision"] == HfApi(token=WRITER).dataset_info("evae/replogle").sha
    info = DatasetInfo.load(tmp_path / "out" / "dataset")
    assert (info.control, info.cell_types) == ("non-targeting", ["hepg2", "jurkat", "k562", "rpe1"])
    assert {kind for kind, _ in info.held_out_pairs()} == {"hepg2"}


def test_parse_takes_one_donor_and_the_published_split(reproduce, tmp_path, monkeypatch):
    """All up to the trainings, which are those of any set."""

    def stop(*arguments):
        raise SystemExit("the first training")

    monkeypatch.setattr(reproduce, "_launch", stop)
    with pytest.raises(SystemExit, match="the first training"):
        reproduce.main(["parse1m", "--rehearse", "--out", str(tmp_path)])
    info = DatasetInfo.load(tmp_path / "dataset")
    assert info.control == "PBS"
    assert {kind for kind, _ in info.held_out_pairs()} == {"CD4 Naive"}
    assert read_split(tmp_path / "dataset", "test").n_obs > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["telohaec"], "needs --tokenizer"),
        (["telohaec", "--tokenizer", "t"], "give it with --url"),
        (["telohaec", "--push", "a/b"], "nothing to push"),
        (["replogle", "--dataset", "a/b"], "--dataset goes with --push"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(reproduce, given, message, capsys):
    with pytest.raises(SystemExit):
        reproduce.main(given)
    assert message in capsys.readouterr().err


def test_the_plan_names_sizes_checksums_and_licences(reproduce, capsys):
    reproduce.main(["replogle", "--dry-run"])
    plan = capsys.readouterr().out
    for file in SETS["replogle"].files:
        assert file.name in plan
        assert file.url in plan
    assert "10.66 GB; md5 4f1122ce1c7f13299a68df6459a266d3" in plan
    assert "CC BY 4.0" in plan


def test_the_job_names_what_it_needs():
    """The block that `uv run` and `hf jobs uv run` read (PEP 723)."""
    text = (SCRIPTS / "reproduce.py").read_text()
    block = re.match(r"# /// script\n((?:#.*\n)+?)# ///\n", text)[1]
    needed = tomllib.loads(re.sub(r"(?m)^# ?", "", block))
    assert needed["dependencies"] == ["evae"]
    project = tomllib.loads((SCRIPTS.parent / "pyproject.toml").read_text())["project"]
    assert needed["requires-python"] == project["requires-python"]
