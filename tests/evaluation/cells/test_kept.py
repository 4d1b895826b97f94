"""What is kept of real cells: it comes back exactly, and the least recently used goes, but never a user's own file."""

import os
import time

import numpy as np

from evae.evaluation.cells import kept
from evae.evaluation.cells.kept import is_kept, keep, load_kept, make_room


def test_arrays_and_texts_come_back_exactly(tmp_path):
    arrays = {"table": np.array([[0.1, np.nan], [np.inf, -0.0]]).T, "number": np.asarray(3)}
    path = tmp_path / "deep" / f"{'0' * 64}.safetensors"
    assert load_kept(path) is None
    keep(path, arrays, {"names": "a"})
    back, texts = load_kept(path)
    assert texts == {"names": "a"}
    assert back["number"].shape == ()
    assert back["number"].item() == 3
    np.testing.assert_array_equal(back["table"], arrays["table"])


def test_the_least_recently_used_files_go(tmp_path):
    old = time.time() - 86_400
    paths = [tmp_path / f"{i:064x}-seed0.json" for i in range(4)]
    others = [tmp_path / "mine.safetensors", tmp_path / "mine.json", tmp_path / f"{0:064x}.h5ad"]
    for i, path in enumerate([*others, *paths]):
        path.write_bytes(bytes(100))
        os.utime(path, (old + i, old + i))
    assert is_kept(paths[0])  # used now
    make_room(tmp_path, limit=250)
    assert [path.exists() for path in paths] == [True, False, False, True]
    make_room(tmp_path, limit=0)
    assert [path.exists() for path in paths] == [True, False, False, False], "what was used within the hour stays"
    assert all(path.exists() for path in others)


def test_every_file_that_is_kept_makes_room(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(kept, "make_room", asked.append)
    keep(tmp_path / "a" / f"{'f' * 64}-means.safetensors", {"values": np.zeros(3)})
    assert asked == [tmp_path / "a"]
