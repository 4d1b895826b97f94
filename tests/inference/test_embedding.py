"""Streamed embedding: the same numbers whatever the file, the kills and the number of processes."""

import os
import subprocess
import sys

import anndata as ad
import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

import evae
from evae.common.files import UNFINISHED
from evae.inference import embedding_files
from evae.inference.checkpoint import load_checkpoint
from evae.inference.embedding_files import embed_file
from evae.inference.embedding_parts import EmbeddingParts

QUIET = {"device": "cpu", "progress": False}
PARTS = {"part_cells": 128, **QUIET}  # eight parts of the 900 cells


@pytest.fixture(scope="module")
def checkpoint(trained_tokenizer):
    return load_checkpoint(trained_tokenizer)


@pytest.fixture(scope="module")
def expected(trained_tokenizer, screen):
    """The embedding of the screen, in memory."""
    return evae.pipeline(trained_tokenizer, device="cpu").embed(screen.copy(), progress=False).obsm["X_evae"]


def read(path):
    """Cell ids and embeddings of any of the three formats."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return table["cell_id"].to_pylist(), np.stack(table["embedding"].to_numpy())
    adata = ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)
    return list(adata.obs_names), adata.obsm["X_evae"]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr", ".parquet"])
def test_every_format_holds_the_cells_in_order(checkpoint, screen, screen_file, expected, tmp_path, suffix):
    out = tmp_path / f"embedded{suffix}"
    result = embed_file(checkpoint, screen_file, out, **PARTS)
    names, values = read(out)
    assert names == list(screen.obs_names)
    np.testing.assert_allclose(values, expected, atol=1e-5)
    assert (result.n_cells, result.width, result.coverage, result.n_empty) == (900, 8, 1.0, 0)
    assert os.listdir(tmp_path) == [out.name]
    if suffix != ".parquet":
        adata = ad.read_zarr(out) if suffix == ".zarr" else ad.read_h5ad(out)
        assert list(adata.obs["perturbation"]) == list(screen.obs["perturbation"])
        assert adata.uns["X_evae"]["kind"] == "latents"


def test_the_copy_keeps_everything_else_and_replaces_an_older_embedding(checkpoint, screen, expected, tmp_path):
    cells = screen.copy()
    cells.obsm["X_evae"], cells.obsm["X_other"] = np.ones((900, 3)), np.ones((900, 2))
    cells.write_h5ad(tmp_path / "in.h5ad")
    embed_file(checkpoint, tmp_path / "in.h5ad", tmp_path / "in.h5ad", overwrite=True, **PARTS)
    copy = ad.read_h5ad(tmp_path / "in.h5ad")
    np.testing.assert_allclose(copy.obsm["X_evae"], expected, atol=1e-5)
    assert copy.obsm["X_other"].shape == (900, 2)
    assert (copy.X != screen.X).nnz == 0


@pytest.mark.parametrize("kind", ["latents", "pooled", "codes"])
def test_kinds(checkpoint, trained_tokenizer, screen, screen_file, tmp_path, kind):
    embed_file(checkpoint, screen_file, tmp_path / "e.parquet", kind, **PARTS)
    pipe = evae.pipeline(trained_tokenizer, device="cpu")
    alone = pipe.embed(screen[:600].copy(), kind, progress=False).obsm["X_evae"]
    values = read(tmp_path / "e.parquet")[1]
    if kind == "codes":  # rounding may move a latent over the border between two codes
        assert (values[:600] != alone).mean() < 0.001
    else:
        np.testing.assert_allclose(values[:600], alone, atol=1e-5)


class Killed(BaseException):
    pass


def kill_after(monkeypatch, n_parts):
    """Die while part number `n_parts` is on its way to the disk."""
    write, done = EmbeddingParts.write, []

    def write_or_die(self, part, embedded):
        if len(done) == n_parts:
            (self.folder / f"{UNFINISHED}1-elsewhere-part-{part:06d}.f32").write_bytes(b"half")
            raise Killed
        done.append(part)
        write(self, part, embedded)

    monkeypatch.setattr(EmbeddingParts, "write", write_or_die)
    return done


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(checkpoint, screen_file, tmp_path, monkeypatch):
    embed_file(checkpoint, screen_file, tmp_path / "whole.parquet", **PARTS)
    out = tmp_path / "e.parquet"
    for n_parts in (0, 3, 2):
        with monkeypatch.context() as patch:
            kill_after(patch, n_parts)
            with pytest.raises(Killed):
                embed_file(checkpoint, screen_file, out, **PARTS)
        assert not out.exists()
    with monkeypatch.context() as patch:
        done = kill_after(patch, 99)
        result = embed_file(checkpoint, screen_file, out, **PARTS)
    assert done == [5, 6, 7]
    assert result.n_resumed == 5 * 128
    np.testing.assert_array_equal(read(out)[1], read(tmp_path / "whole.parquet")[1])
    assert sorted(os.listdir(tmp_path)) == ["e.parquet", "whole.parquet"]


def test_parts_of_another_embedding_are_not_mixed_in(checkpoint, screen_file, tmp_path, monkeypatch):
    out = tmp_path / "e.parquet"
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        with pytest.raises(Killed):
            embed_file(checkpoint, screen_file, out, "codes", **PARTS)
    with pytest.raises(evae.EvaeError, match=r"parts of another embedding \(another kind\).*remove that folder"):
        embed_file(checkpoint, screen_file, out, "latents", **PARTS)
    assert embed_file(checkpoint, screen_file, out, "codes", **PARTS).n_resumed == 3 * 128


def test_a_damaged_part_is_noticed(checkpoint, screen_file, tmp_path, monkeypatch):
    out = tmp_path / "e.parquet"
    kill = kill_after(monkeypatch, 7)
    with pytest.raises(Killed):
        embed_file(checkpoint, screen_file, out, **PARTS)
    monkeypatch.undo()
    assert len(kill) == 7
    part = tmp_path / ".e.parquet.parts" / "part-000002.f32"
    part.write_bytes(part.read_bytes()[:-4])
    with pytest.raises(evae.EvaeError, match="is damaged; remove it"):
        embed_file(checkpoint, screen_file, out, **PARTS)
    assert not out.exists()


def test_two_processes_give_the_bits_of_one(checkpoint, trained_tokenizer, screen_file, tmp_path):
    # The command, with parts small enough that both processes have some.
    (tmp_path / "command.py").write_text(
        "import evae.cli, evae.inference.embedding_files as f\n"
        "f.embed_file.__kwdefaults__['part_cells'] = 128\nevae.cli.main()\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "command.py"]
    command = [*launch, "embed", trained_tokenizer, screen_file, "--out", "two.parquet", "--kind", "pooled"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [str(c) for c in command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("900 cells of 16 values") == 1
    embed_file(checkpoint, screen_file, tmp_path / "one.parquet", "pooled", **PARTS)
    np.testing.assert_array_equal(read(tmp_path / "two.parquet")[1], read(tmp_path / "one.parquet")[1])


def test_each_process_embeds_its_own_share(checkpoint, screen_file, tmp_path, monkeypatch):
    """The second of two processes embeds the second half only, and writes no result."""

    class SecondOfTwo:
        process_index, num_processes, device = 1, 2, "cpu"

        def __init__(self, cpu):
            assert cpu

        def wait_for_everyone(self):
            pass

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(embedding_files, "PartialState", SecondOfTwo)
    monkeypatch.setattr(EmbeddingParts, "claim", None)
    (tmp_path / ".e.parquet.parts").mkdir()
    assert embed_file(checkpoint, screen_file, tmp_path / "e.parquet", part_cells=128, progress=False) is None
    parts = sorted(os.listdir(tmp_path / ".e.parquet.parts"))
    assert parts == [f"part-{i:06d}.f32" for i in (4, 5, 6, 7)]
    assert not (tmp_path / "e.parquet").exists()


def test_columns_stored_counts_are_embedded_alike(checkpoint, screen, expected, tmp_path):
    cells = ad.AnnData(sp.csc_matrix(screen.X), obs=screen.obs, var=screen.var)
    cells.write_h5ad(tmp_path / "csc.h5ad")
    embed_file(checkpoint, tmp_path / "csc.h5ad", tmp_path / "e.parquet", **PARTS)
    np.testing.assert_allclose(read(tmp_path / "e.parquet")[1], expected, atol=1e-5)


def test_one_process_puts_the_counts_by_cell_before_the_others_read(checkpoint, screen, tmp_path, monkeypatch):
    found = []

    class FirstOfTwo:
        process_index, num_processes, device = 0, 2, "cpu"

        def __init__(self, cpu):
            assert cpu

        def wait_for_everyone(self):
            found.extend(os.listdir(tmp_path / ".e.parquet.parts"))
            raise KeyboardInterrupt

    ad.AnnData(sp.csc_matrix(screen.X), obs=screen.obs, var=screen.var).write_h5ad(tmp_path / "csc.h5ad")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(embedding_files, "PartialState", FirstOfTwo)
    with pytest.raises(KeyboardInterrupt):
        embed_file(checkpoint, tmp_path / "csc.h5ad", tmp_path / "e.parquet", **PARTS)
    assert {"done", "indptr", "indices", "data"} < set(found)


def test_cells_without_counts_get_no_numbers(checkpoint, screen, expected, tmp_path):
    cells = screen.copy()
    cells.X[[3, 500]] = 0
    cells.write_h5ad(tmp_path / "some.h5ad")
    result = embed_file(checkpoint, tmp_path / "some.h5ad", tmp_path / "e.parquet", **PARTS)
    values = read(tmp_path / "e.parquet")[1]
    assert result.n_empty == 2
    assert np.flatnonzero(np.isnan(values).all(axis=1)).tolist() == [3, 500]
    kept = ~np.isnan(values[:, 0])
    np.testing.assert_allclose(values[kept], expected[kept], atol=1e-5)


def test_genes_are_aligned_and_coverage_is_told(run, trained_tokenizer, screen, expected, tmp_path):
    order = np.random.default_rng(0).permutation(60)
    shuffled = screen[:, order]
    extra = ad.AnnData(np.full((900, 5), 7), obs=screen.obs)
    extra.var_names = [f"other{i}" for i in range(5)]
    cells = ad.concat([extra, shuffled], axis=1)
    cells.write_h5ad(tmp_path / "shuffled.h5ad")
    outcome = run("embed", trained_tokenizer, tmp_path / "shuffled.h5ad", "--out", tmp_path / "e.parquet")
    assert outcome.code == 0, outcome.err
    assert "of the model's gene panel" not in outcome.out
    np.testing.assert_allclose(read(tmp_path / "e.parquet")[1], expected, atol=1e-5)
    screen[:, :45].write_h5ad(tmp_path / "narrow.h5ad")
    outcome = run("embed", trained_tokenizer, tmp_path / "narrow.h5ad", "--out", tmp_path / "n.parquet")
    assert "the cells measure 75.0% of the model's gene panel" in outcome.out
    assert "cells/s" in outcome.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: cells[:, :10].copy(), "only 10 of 60 panel genes"),
        (lambda cells: ad.AnnData(cells.X.astype(np.float32) * 0.5, cells.obs, cells.var), "raw integer counts"),
        (lambda cells: cells[:0].copy(), "hold 0 cells"),
    ],
)
def test_bad_cells_leave_nothing_behind(checkpoint, screen, tmp_path, change, message):
    change(screen).write_h5ad(tmp_path / "bad.h5ad")
    with pytest.raises(evae.EvaeError, match=message):
        embed_file(checkpoint, tmp_path / "bad.h5ad", tmp_path / "e.parquet", **PARTS)
    assert os.listdir(tmp_path) == ["bad.h5ad"]


def test_outputs_are_checked_before_any_work(checkpoint, screen_file, tmp_path):
    (tmp_path / "folder.h5ad").mkdir()
    (tmp_path / "there.parquet").write_text("precious")
    for name, message in (
        ("e.csv", "name an .h5ad"),
        ("folder.h5ad", "is a folder"),
        ("there.parquet", "overwrite=True"),
    ):
        with pytest.raises(evae.EvaeError, match=message):
            embed_file(checkpoint, screen_file, tmp_path / name, **PARTS)
    assert (tmp_path / "there.parquet").read_text() == "precious"
