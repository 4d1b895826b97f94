"""Uploads: read in a process of their own within limits, gone afterwards, and never a way to other files."""

import os
import shutil
import socket
import sys
import time
from pathlib import Path

import anndata as ad
import h5py
import pytest

import evae
from evae.app.controls import LabelColumns, controls_of
from evae.app.reader import check_alone, packed, unpacked
from evae.app.server import free_port, sweep
from evae.app.uploads import Bounds, take_upload
from evae.inference.example import CONTROLS, FOLDER
from evae.models.contract_evae import EvaeError

USUAL = LabelColumns(usual="non-targeting")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the server stores uploads."""
    (tmp_path / "uploads" / "digest").mkdir(parents=True)
    return tmp_path / "uploads"


@pytest.fixture
def upload(folder: Path) -> Path:
    return Path(shutil.copy(FOLDER / CONTROLS, folder / "digest" / "cells.h5ad"))


def refused(path: Path, folder: Path, **bounds: float) -> str:
    """What the user reads, after which the upload is gone."""
    with pytest.raises(EvaeError) as error:
        take_upload(path, folder, USUAL, Bounds(**bounds))
    assert not path.exists()
    said = str(error.value)
    assert said.startswith(path.name)  # and not where the server keeps it
    assert str(folder) not in said
    assert "\n" not in said
    return said


def test_the_cells_of_an_upload_are_read_and_the_file_is_gone(upload, folder):
    cells, notes = take_upload(upload, folder, USUAL, Bounds())
    given = evae.example_controls()
    assert (cells.X != given.X).nnz == 0
    assert list(cells.var_names) == list(given.var_names)
    assert list(cells.obs["cell_type"]) == list(given.obs["cell_type"])
    assert "perturbation" not in cells.obs
    assert notes == []
    assert list(folder.iterdir()) == []


def test_a_file_that_is_none_takes_too_long_or_takes_too_much(upload, folder):
    assert "longer than 0.01 seconds" in refused(upload, folder, seconds=0.01)
    shutil.copytree(FOLDER, folder / "digest")
    large = Path(shutil.copy(FOLDER / CONTROLS, folder / "large.h5ad"))
    assert "larger than 0 MB" in refused(large, folder, megabytes=0)
    assert "no h5ad file" in refused(folder / "digest" / "config.json", folder)


def test_a_small_file_that_unpacks_to_a_huge_one_ends_its_reader_only(folder):
    """A column of a thousand million equal labels is some kB in the file."""
    path = folder / "digest" / "cells.h5ad"
    shutil.copy(FOLDER / CONTROLS, path)
    with h5py.File(path, "r+") as file:
        file["obs"].create_dataset("cell_line", (300, 4_000_000), "f8", chunks=(1, 4_000_000), compression="gzip")
        del file["X"]
        file.create_dataset("X", (300, 200_000_000), "f4", chunks=(1, 1_000_000), compression="gzip")
        file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        del file["var"]
        names = file.create_group("var")
        names.attrs.update(
            {"_index": "_index", "column-order": [], "encoding-type": "dataframe", "encoding-version": "0.2.0"}
        )
        index = names.create_dataset("_index", (200_000_000,), "S8", chunks=(1_000_000,), compression="gzip")
        index.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    assert path.stat().st_size < 3_000_000
    said = refused(path, folder, memory=300_000_000, seconds=60)
    assert "memory" in said or "cannot be read" in said


def test_a_path_that_was_not_uploaded_is_left_alone(tmp_path, folder):
    own = Path(shutil.copy(FOLDER / CONTROLS, tmp_path / "own.h5ad"))
    (folder / "link.h5ad").symlink_to(own)
    for path in (own, folder / ".." / "own.h5ad", folder / "link.h5ad", folder, folder / "none.h5ad"):
        with pytest.raises(EvaeError, match="no such upload"):
            take_upload(path, folder, USUAL, Bounds())
    assert own.is_file()


def external_link(file: h5py.File, secret: Path) -> None:
    del file["X/data"]
    file["X/data"] = h5py.ExternalLink(str(secret), "X/data")


def external_storage(file: h5py.File, secret: Path) -> None:
    n = len(file["X/data"])
    del file["X/data"]
    file["X"].create_dataset("data", (n,), "f4", external=[(str(secret), 0, 4 * n)])


def virtual(file: h5py.File, secret: Path) -> None:
    shape = file["X/data"].shape
    del file["X/data"]
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource(str(secret), "X/data", shape)
    file["X"].create_virtual_dataset("data", layout)


@pytest.mark.parametrize("points", [external_link, external_storage, virtual])
def test_a_file_that_points_at_another_is_refused(points, upload, tmp_path):
    secret = Path(shutil.copy(FOLDER / CONTROLS, tmp_path / "secret.h5ad"))
    with h5py.File(upload, "r+") as file:
        points(file, secret)
        file["X/data"].shape  # noqa: B018  # HDF5 itself follows it
    with pytest.raises(EvaeError, match=r"another file.*write your cells anew"):
        check_alone(upload)


def test_links_within_a_file_are_fine(upload):
    with h5py.File(upload, "r+") as file:
        file["layers/counts"] = h5py.SoftLink("/X")
        file["uns/again"] = file["X"]
    check_alone(upload)


@pytest.mark.parametrize("with_types", [True, False])
def test_cells_come_back_as_they_were_packed(with_types):
    cells = evae.example_controls()[:7]
    genes = [f"<b>{name}</b> é" for name in cells.var_names]
    obs = cells.obs[["cell_type"]] if with_types else cells.obs[[]]
    cells = ad.AnnData(cells.X, obs=obs.reset_index(drop=True).rename(str))
    cells.var_names, cells.var["ensembl_id"] = genes, ""
    again, notes = unpacked(packed(cells, ["said"]))
    assert notes == ["said"]
    assert (again.X != cells.X).nnz == 0
    assert list(again.var_names) == genes
    assert list(again.obs.columns) == list(obs.columns)


def test_labels_are_found_by_the_names_that_are_usual(screen, tmp_path):
    path = tmp_path / "cells.h5ad"
    cells = screen.copy()
    cells.obs = cells.obs.rename(columns={"perturbation": "gene_target", "cell_type": "cell_line"})
    cells.write_h5ad(path)
    n_controls = int((screen.obs["perturbation"] == "control").sum())
    found, notes = controls_of(path, USUAL, 2_000)
    assert found.n_obs == n_controls
    assert set(found.obs["cell_type"]) == {"type_A", "type_B"}
    assert any("the other" in note for note in notes)
    fewer, notes = controls_of(path, USUAL, 50)
    assert fewer.n_obs == 50
    assert "drawn at random" in notes[-1]
    name = next(n for n in screen.obs["perturbation"].cat.categories if n != "control")
    other, _ = controls_of(path, LabelColumns(control=name), 2_000)
    assert other.n_obs == int((screen.obs["perturbation"] == name).sum())
    for wrong in (LabelColumns(perturbation_key="target"), LabelColumns(cell_type_key="lines")):
        with pytest.raises(EvaeError, match=r"no obs column '(target|lines)'\. (Did|Known)"):
            controls_of(path, wrong, 2_000)
    cells.obs["cell_line"] = cells.obs["cell_line"].astype(object).where(cells.obs["cell_line"] != "type_B")
    cells.write_h5ad(path)
    some, _ = controls_of(path, USUAL, 2_000)
    assert set(unpacked(packed(some, []))[0].obs["cell_type"].dropna()) == {"type_A"}  # and no type without a name
    cells.obs = cells.obs[[]]
    cells.write_h5ad(path)
    everything, _ = controls_of(path, USUAL, 2_000)
    assert everything.n_obs == screen.n_obs
    assert list(everything.obs) == []


def test_what_lies_in_the_folder_for_long_is_removed(folder, upload):
    broken_off = folder / "tmp1234"
    broken_off.write_bytes(b"half a file")
    old = time.time() - 100
    os.utime(broken_off, (old, old))
    sweep(folder, 60)
    assert not broken_off.exists()
    assert upload.is_file()
    for path in (upload, upload.parent):
        os.utime(path, (old, old))
    sweep(folder, 60)
    assert not upload.exists()


def test_ports():
    port = free_port("127.0.0.1", 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(EvaeError, match=f"port {port} is taken"):
            free_port("127.0.0.1", port)
    with pytest.raises(EvaeError, match="cannot listen on"):
        free_port("203.0.113.7", None)


def test_without_gradio_the_command_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = run("app")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "pip install 'evae[app]'" in done.err
