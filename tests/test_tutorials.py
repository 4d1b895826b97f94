"""Every tutorial runs from its first cell to its last in a kernel of Jupyter, offline, and shows what is stored."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
for module in ("nbclient", "ipykernel"):
    pytest.importorskip(module, reason="the extra docs is not installed")

import nbformat  # noqa: E402


@pytest.fixture(scope="module")
def run_notebook():
    spec = importlib.util.spec_from_file_location("run_tutorials", ROOT / "scripts" / "run_tutorials.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.run_notebook


def shown(notebook):
    """The kinds of what every cell shows, and what it prints."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [[sorted(output.get("data", {})) or output.get("text") for output in cell.outputs] for cell in code]


def test_the_tutorials_are_these():
    assert [path.stem for path in TUTORIALS] == ["evaluate", "finetune", "predict", "rank", "train"]
    assert sum(path.stat().st_size for path in TUTORIALS) < 800_000


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs_and_shows_what_is_stored(path, run_notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = run_notebook(path, tmp_path)
    assert shown(notebook) == shown(nbformat.read(path, 4))
    for cell in notebook.cells:
        if cell.cell_type == "code" and "evae.plot." in cell.source:
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
