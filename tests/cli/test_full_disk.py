"""Commands on a disk that is full: one line with the path and the mend, exit code 2, nothing half written."""

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest


@contextmanager
def no_file_above(n_bytes: int) -> Iterator[None]:
    """As on a disk without more room: the system refuses what would make a file longer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def check_line(outcome, path):
    assert outcome.code == 2, outcome
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith(f"error: could not write {path} (")
    assert "free space there" in outcome.err


def test_predict_on_a_full_disk(run, trained_prior, screen_file, screen_split, tmp_path):
    out = tmp_path / "new" / "predicted.h5ad"
    command = ("predict", trained_prior, "--controls", screen_file, "--perturbation", screen_split["pert"][0])
    with no_file_above(20_000):
        outcome = run(*command, "--out", out)
    check_line(outcome, out)
    assert os.listdir(tmp_path / "new") == []


@pytest.mark.parametrize("stage", ["parts", "copy", "copied", "parquet"])
def test_embed_on_a_full_disk_goes_on_when_there_is_room(run, trained_tokenizer, screen_file, tmp_path, stage):
    embedded = 900 * 8 * 4
    limit = {"parts": embedded // 2, "copy": embedded, "copied": screen_file.stat().st_size + 5_000}
    out = tmp_path / ("e.parquet" if stage == "parquet" else "e.h5ad")
    command = ("embed", trained_tokenizer, screen_file, "--out", out)
    with no_file_above(limit.get(stage, embedded)):
        outcome = run(*command)
    check_line(outcome, out)
    assert "give the same command again" in outcome.err
    assert os.listdir(tmp_path) == [f".{out.name}.parts"]
    outcome = run(*command)
    assert outcome.code == 0, outcome.err
    assert os.listdir(tmp_path) == [out.name]
    if stage == "copied":
        assert np.isfinite(ad.read_h5ad(out).obsm["X_evae"]).all()
    if stage != "parts":  # everything was embedded before: nothing to time
        assert "900 cells were embedded before" in outcome.out
        assert "cells/s" not in outcome.out


def test_embed_looks_for_room_before_it_begins(run, trained_tokenizer, screen_file, tmp_path, monkeypatch):
    needed = 2 * 900 * 8 * 4 + screen_file.stat().st_size  # parts, and the copy with the embedding
    for free, code in ((needed - 1, 2), (needed, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        outcome = run("embed", trained_tokenizer, screen_file, "--out", tmp_path / "e.h5ad")
        assert outcome.code == code, outcome
        if code:
            assert f"{tmp_path / 'e.h5ad'} takes " in outcome.err
            assert "are free on its disk; free space there" in outcome.err
            assert os.listdir(tmp_path) == []


def test_a_folder_that_may_not_be_written_is_refused_before_anything_is_drawn(
    run, trained_prior, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    outcome = run("predict", trained_prior, "--perturbation", "any", "--out", tmp_path / "p.h5ad")
    assert outcome.code == 2
    assert f"{tmp_path} may not be written; make it writable" in outcome.err
