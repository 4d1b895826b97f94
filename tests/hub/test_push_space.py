"""`evae push --space`: what arrives is an app that runs from its own folder, with the model and the cells given."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import anndata as ad
import pytest
from huggingface_hub import SpaceCard, snapshot_download
from packaging.requirements import Requirement

from evae.hub import push_space

WRITER = "hf_writer"
SPACE = "evae/screen-app"
# Where app.py is run as the Hub runs it, but for the serving itself: it says what it would serve, and asks the model.
RUN = """
import json, runpy
import evae.app.server as server
from evae.app.answer import Question, ask
from evae.app.offered import load_offered
def serve(models, controls=None, **where):
    (model,) = load_offered(models, controls, "cpu", 2000).values()
    answer = ask(model, None, Question(model.perturbations()[0], n_cells=20), lambda share, what: None)
    print(json.dumps([server.__file__, model.name, where, int(answer.predicted.n_obs), int(model.controls.n_obs)]))
server.serve = serve
runpy.run_path("app.py")
"""

pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="Gradio is in the extra app")


def started(folder: str) -> list:
    """What app.py of a Space serves; `evae` is the Space's own, which stands where it is started."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found[0]).is_relative_to(Path(folder).resolve())
    return found[1:]


def test_a_space_runs_what_was_pushed(hub, login, trained_prior, screen, screen_file, run, tmp_path):
    login(WRITER)
    done = run("push", trained_prior, SPACE, "--space", "--controls", screen_file)
    assert done.code == 0, done.err
    assert "in one commit" in done.out
    assert len(done.out.splitlines()) < 40  # the package is one line
    assert list(hub.repos) == [("spaces", SPACE)]
    files = hub.repo(SPACE, "spaces").files()
    assert files["models/screen-app/model.safetensors"] == (trained_prior / "model.safetensors").read_bytes()
    assert not any(str(trained_prior.parent).encode() in content for content in files.values())
    folder = snapshot_download(SPACE, repo_type="space", local_dir=tmp_path / "space")
    n_controls = int((screen.obs["perturbation"] == "control").sum())
    where = {"host": "0.0.0.0", "port": 7860}
    assert started(folder) == ["screen-app", where, 20, n_controls]
    assert set(ad.read_h5ad(Path(folder) / "controls.h5ad").obs) == {"cell_type"}  # no other label of the file goes


def test_the_hub_can_read_what_a_space_needs(hub, login, run):
    login(WRITER)
    assert run("push", "example", SPACE, "--space", "--private").code == 0
    assert hub.repo(SPACE, "spaces").private
    files = hub.repo(SPACE, "spaces").files()
    card = SpaceCard(files["README.md"].decode()).data
    assert (card.sdk, card.app_file, card.license) == ("gradio", "app.py", "mit")
    assert "mcp-server" in card.tags
    lines = [line for line in files["requirements.txt"].decode().splitlines() if not line.startswith("--")]
    wanted = {need.name: need for need in map(Requirement, lines)}
    assert {"torch", "transformers", "gradio", "umap-learn"} <= set(wanted)
    assert card.sdk_version == str(wanted["gradio"].specifier).removeprefix("==")
    assert wanted["gradio"].extras == {"mcp"}
    assert all(len(need.specifier) == 1 and "+" not in str(need.specifier) for need in wanted.values())
    assert not any(name.startswith("models/") for name in files)
    assert b'serve(["example"]' in files["app.py"]
    assert not any("__pycache__" in name for name in files)


def test_a_second_push_leaves_nothing_of_the_first(hub, login, trained_prior, screen_file):
    login(WRITER)
    push_space(trained_prior, SPACE, controls=screen_file)
    push_space("example", SPACE)
    files = hub.repo(SPACE, "spaces").files()
    assert "controls.h5ad" not in files
    assert not any(name.startswith("models/") for name in files)


def test_what_is_refused(login, trained_tokenizer, trained_prior, screen_file, run):
    login(WRITER)
    for words, says in (
        ((trained_tokenizer, SPACE, "--space"), "a tokenizer, which does not predict"),
        (("example", SPACE, "--space", "--controls", screen_file), "control cells of its own"),
        (("example", SPACE), "no such folder"),
        ((trained_prior, SPACE, "--controls", screen_file), "--controls goes with --space"),
        ((trained_prior, SPACE, "--space", "--card", "replogle-ar"), "leave --card"),
        ((trained_prior, "app", "--space"), "no Hub id"),
    ):
        done = run("push", *words)
        assert (done.code, done.err.count("\n")) == (2, 1), words
        assert says in done.err
