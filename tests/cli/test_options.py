"""Messages in the terminal name options, not arguments of Python; and the options do what the messages say."""

import anndata as ad
import numpy as np
import pytest
import typer

from evae.cli import app
from evae.cli.options import in_options


def command(name):
    return typer.main.get_command(app).commands[name]


@pytest.mark.parametrize(
    ("name", "message", "expected"),
    [
        ("predict", "set cell_type_key=None.", "set --cell-type-key ''."),
        ("predict", "name one cell_type, or give cell_type_key", "name one --cell-type, or give --cell-type-key"),
        ("predict", "say how many with n_cells.", "say how many with --n-cells."),
        ("predict", "num_steps is 0; give at least 1.", "--steps is 0; give at least 1."),
        ("predict", "no column 'cell_type'", "no column 'cell_type'"),
        ("predict", "/data/cell_type/n_cells.h5ad", "/data/cell_type/n_cells.h5ad"),
        ("predict", "the control of the controls", "the control of the controls"),
        ("evaluate", "pass controls=... or name the label", "pass --controls or name the label"),
        ("evaluate", 'use real_scale="counts" or scale="log1p".', "use --real-scale counts or --scale log1p."),
        ("embed", "choose another, or pass overwrite=True.", "choose another, or pass --overwrite."),
        ("reversion", "name them with positives=..., n_shuffles is 3", "name them with --positive, --shuffles is 3"),
        ("train", "set resume=true, lower learning_rate", "set resume=true, lower learning_rate"),
    ],
)  # fmt: skip
def test_arguments_become_options(name, message, expected):
    assert in_options(message, command(name)) == expected


def test_an_empty_cell_type_key_takes_all_controls_as_one_type(run, trained_prior, controls, screen_split, tmp_path):
    """What the message says, done."""
    controls.obs["cell_type"] = "PBMC"
    controls[:9].write_h5ad(tmp_path / "controls.h5ad")
    asked = ("predict", trained_prior, "--controls", tmp_path / "controls.h5ad", "--out", tmp_path / "out.h5ad")
    asked += ("--perturbation", screen_split["pert"][0])
    outcome = run(*asked, "--cell-type", "type_A")
    assert outcome.code == 2
    assert outcome.err.endswith("To use all controls as 'type_A', set --cell-type-key ''.\n")
    outcome = run(*asked, "--cell-type-key", "")
    assert outcome.code == 2
    assert "name the --cell-type that the controls are of" in outcome.err
    outcome = run(*asked, "--cell-type", "type_A", "--cell-type-key", "")
    assert outcome.code == 0, outcome.err
    assert ad.read_h5ad(tmp_path / "out.h5ad").n_obs == 9


def test_evaluate_takes_all_cells_as_one_type_and_names_its_options(run, screen, tmp_path):
    cells = screen.copy()
    del cells.obs["cell_type"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    asked = ("evaluate", tmp_path / "cells.h5ad", tmp_path / "cells.h5ad", "--seeds", 1, "--suite", "perturbation")
    asked += ("--no-plots", "--control", "control")
    assert "name it with --cell-type-key" in run(*asked).err
    outcome = run(*asked, "--cell-type-key", "")
    assert outcome.code == 0, outcome.err
    cells.X = cells.X * np.float32(0.37)
    cells.write_h5ad(tmp_path / "expected.h5ad")
    error = run("evaluate", tmp_path / "expected.h5ad", *asked[2:], "--cell-type-key", "", "--overwrite").err
    assert "--scale counts if they are expected counts" in error
