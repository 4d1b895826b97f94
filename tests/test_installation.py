"""The line that notebooks install the package with: run in IPython, offline, and what it installs predicts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OFFLINE = "--no-deps --no-index --no-build-isolation --disable-pip-version-check"
PREDICTS = """
import evae
assert evae.__file__.startswith(FOLDER), evae.__file__
cells = evae.pipeline("example", device="cpu").predict(evae.example_controls(), "STAT1", n_cells=3, progress=False)
from evae.training.settings import config_path, load_settings
load_settings("prior", config_path("tiny", "prior"), [])
print(cells.n_obs, "cells")
"""


def test_the_line_for_notebooks_installs_a_package_that_predicts(tmp_path, monkeypatch):
    pytest.importorskip("hatchling", reason="the extra dev is not installed")
    pytest.importorskip("IPython", reason="the extra docs is not installed")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    lines = re.findall(r"^%pip install .*$", (ROOT / "docs/guide/install.md").read_text(), flags=re.MULTILINE)
    assert len(lines) == 1
    (tmp_path / "evae").symlink_to(ROOT)
    line = lines[0].replace("./evae", f"{tmp_path / 'evae'} {OFFLINE} --target {tmp_path / 'installed'}")
    done = subprocess.run([sys.executable, "-m", "IPython", "-c", line], capture_output=True, text=True, timeout=300)
    assert (tmp_path / "installed/evae/example/model.safetensors").is_file(), done.stdout + done.stderr
    code = f"FOLDER = {str(tmp_path / 'installed')!r}\nimport sys\nsys.path.insert(0, FOLDER)\n{PREDICTS}"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert "3 cells" in ran.stdout, ran.stderr
