"""`evae prepare` killed, out of disk, or into a folder that is taken: what is done stays done."""

import errno
import os
import shutil
from pathlib import Path

import anndata as ad
import pytest

from evae.common.files import UNFINISHED
from evae.data.preparing import convert, workers
from evae.data.preparing.prepare import prepare_dataset
from evae.models.contract_evae import EvaeError


def _killed_after(monkeypatch, step: str, n_pieces: int) -> None:
    """Let the n-th piece of a step be the last: the process dies while it writes the next, half of which is there."""
    real, done = getattr(convert, step), []

    def last(*args):
        if len(done) == n_pieces:
            path = args[-1] if isinstance(args[-1], Path) else args[-1].path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f"{UNFINISHED}1-elsewhere-{path.name}").write_text("half")
            raise KeyboardInterrupt
        done.append(args)
        return real(*args)

    monkeypatch.setattr(convert, step, last)


def _counted(calls: dict[str, int], name: str):
    real = getattr(convert, name)

    def counted(*args):
        calls[name] += 1
        return real(*args)

    return counted


@pytest.mark.parametrize(
    ("step", "pieces", "genes"),
    [("_measure", 2, "all"), ("_scatter", 0, "all"), ("_scatter", 3, "hvg:30"), ("_gather", 11, "hvg:30")],
)
def test_a_killed_run_goes_on(h5ad, contents, tmp_path, keys, monkeypatch, step, pieces, genes):
    """The folder is that of a run that was left alone, and what was done is not done again."""
    monkeypatch.setattr(convert, "SCATTERED", 1)  # every block is sorted by itself
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = keys | {"split": "random:0.1", "genes": genes, "chunk_size": 300}
    whole = prepare_dataset(h5ad, tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        _killed_after(patched, step, pieces)
        with pytest.raises(KeyboardInterrupt):
            prepare_dataset(h5ad, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    calls = dict.fromkeys(("_sums", "_measure", "_scatter", "_gather"), 0)
    for name in calls:
        monkeypatch.setattr(convert, name, _counted(calls, name))
    again = prepare_dataset(h5ad, tmp_path / "out", **options)
    assert contents(again).keys() == contents(whole).keys()
    assert {k: v for k, v in contents(again).items() if k != "README.md"} == {
        k: v for k, v in contents(whole).items() if k != "README.md"
    }
    done = {"_sums": 0, "_measure": 5, "_scatter": 5, "_gather": 24}
    for name in done:
        done[name] = 0 if list(done).index(name) < list(done).index(step) else done[name]
    done[step] -= pieces
    assert calls == done
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


def test_a_killed_run_starts_anew_where_anything_changed(h5ad, tmp_path, keys, monkeypatch):
    source = Path(shutil.copy(h5ad, tmp_path / "a.h5ad"))
    for change in ("seed", "file"):
        with monkeypatch.context() as patched:
            _killed_after(patched, "_gather", 3)
            with pytest.raises(KeyboardInterrupt):
                prepare_dataset(source, tmp_path / "out", **keys)
        if change == "file":
            shorter = ad.read_h5ad(source)[:1000]
            shorter.write_h5ad(source)
        options = keys | ({"seed": 5} if change == "seed" else {})
        folder = prepare_dataset(source, tmp_path / "out", **options)
        wanted = prepare_dataset(source, tmp_path / "wanted", **options)
        assert (folder / "dataset.json").read_text() == (wanted / "dataset.json").read_text()
        shutil.rmtree(folder)
        shutil.rmtree(wanted)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_full_disk_leaves_what_is_done(h5ad, tmp_path, keys, monkeypatch, code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr("evae.data.preparing.prepare.dataset_card", fail)
        with pytest.raises(
            EvaeError, match=r"could not write .*out.partial .*free space there.* give the same command again"
        ):
            prepare_dataset(h5ad, tmp_path / "out", **keys)
    monkeypatch.setattr(convert, "_gather", fail)  # every shard is there
    assert len(list(prepare_dataset(h5ad, tmp_path / "out", **keys).glob("data/*"))) == 16


def test_the_folder_to_make(h5ad, tmp_path, keys):
    for name in ("full", "other.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
        message = "exists and is not empty" if name == "full" else "is in the way and not of `evae prepare`"
        with pytest.raises(EvaeError, match=message):
            prepare_dataset(h5ad, tmp_path / name.removesuffix(".partial"), **keys)
        assert (tmp_path / name / "thesis.txt").read_text() == "mine"
    (tmp_path / "out").mkdir()  # empty: fine
    folder = prepare_dataset(h5ad, tmp_path / "out", **keys)
    assert not (tmp_path / "out.partial").exists()
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "cell_types.parquet", "data", "dataset.json", "genes.parquet", "perturbations.parquet",
        "split.json",
    ]  # fmt: skip


def test_two_at_once_into_one_folder(h5ad, tmp_path, keys, monkeypatch):
    def meanwhile(*args):
        with pytest.raises(EvaeError, match="another `evae prepare` works in"):
            prepare_dataset(h5ad, tmp_path / "out", **keys)
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "_measure", meanwhile)
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(h5ad, tmp_path / "out", **keys)
    assert (tmp_path / "out.partial").is_dir()


def test_a_worker_opens_the_files_with_its_first_task(tmp_path, h5ad):
    """They stay open for the next ones, and are closed for the task of another conversion."""
    how = ([h5ad], None, tmp_path / "scratch")
    (first,) = workers._call(how, list, ())
    assert workers._call(how, list, ()) == [first]
    (other,) = workers._call((*how[:2], tmp_path / "elsewhere"), list, ())
    assert other is not first
    with pytest.raises(EvaeError, match="no such file"):
        workers._call(([tmp_path / "gone.h5ad"], None, tmp_path / "gone"), len, ())
