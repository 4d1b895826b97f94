"""Files and folders are there whole or not at all, whoever else writes them and whatever ends the writing."""

import errno
import json
import os
import subprocess
import sys

import pytest

from evae.common import files
from evae.common.files import UNFINISHED, atomic_folder, atomic_write, explain_disk_errors, write_json, write_text
from evae.models.contract_evae import EvaeError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def run_python(program, *arguments):
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def write_half(path):
    with atomic_write(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError


def write_half_a_folder(path):
    with atomic_folder(path) as folder:
        (folder / "part").write_text("ne")
        raise RuntimeError


def test_an_error_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(RuntimeError):
        write_half(tmp_path / "file")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_an_error_in_the_middle_leaves_the_old_folder_and_nothing_else(tmp_path):
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "part").write_text("old")
    with pytest.raises(RuntimeError):
        write_half_a_folder(tmp_path / "folder")
    assert names(tmp_path) == ["folder"]
    assert (tmp_path / "folder" / "part").read_text() == "old"


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    for name in ("old", "new"):
        with atomic_folder(tmp_path / "results") as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / name).touch()
    assert names(tmp_path) == ["results"]
    assert names(tmp_path / "results" / "inner") == ["new"]


def test_the_temporary_name_keeps_the_ending(tmp_path):
    with atomic_write(tmp_path / "deep" / "figure.png") as temporary:
        assert temporary.suffix == ".png"
        assert temporary.name.startswith(UNFINISHED)
        assert not (tmp_path / "deep" / "figure.png").exists()
        temporary.touch()
    assert names(tmp_path / "deep") == ["figure.png"]


def test_a_killed_writer_leaves_a_temporary_file_that_the_next_one_removes(tmp_path):
    path = tmp_path / "notes.txt"
    write_text(path, "old")
    program = (
        "import os, signal, sys\n"
        "from evae.common.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert run_python(program, path).wait() == -9
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2
    files._remove_leftovers.cache_clear()  # as a new process finds the folder
    write_text(path, "new")
    assert names(tmp_path) == ["notes.txt"]
    assert path.read_text() == "new"


def test_two_processes_write_the_same_file(tmp_path):
    """The other process begins while this one writes, and ends after it: both write whole files."""
    path = tmp_path / "notes.txt"
    program = (
        "import sys\n"
        "from evae.common.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('other')\n"
        "    print('writing', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with atomic_write(path) as temporary:
        temporary.write_text("own")
        other = subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert other.stdout.readline() == "writing\n"
        files._remove_leftovers.cache_clear()
        write_text(tmp_path / "more.txt", "")  # the living process's file is no leftover
    assert path.read_text() == "own"
    other.communicate("")
    assert other.returncode == 0
    assert path.read_text() == "other"
    assert names(tmp_path) == ["more.txt", "notes.txt"]


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "numbers.json", {"loss": float("nan")})
    assert names(tmp_path) == []
    assert json.loads(write_json(tmp_path / "numbers.json", {"loss": 0.5}).read_text()) == {"loss": 0.5}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError(f"SafetensorError: I/O error: {os.strerror(errno.ENOSPC)} (os error 28)"),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
    ],
)
def test_a_full_disk_is_one_line(error):
    reason = os.strerror(getattr(error, "errno", None) or errno.ENOSPC)
    line = rf"^could not write the log \({reason}\); free space .*, then run it again\.$"
    with pytest.raises(EvaeError, match=line) as said, explain_disk_errors("the log"):
        raise error
    assert "\n" not in str(said.value)
    assert said.value.__cause__ is error


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "no such file"), KeyError("a"), EvaeError("b")])
def test_other_errors_stay(error):
    with pytest.raises(type(error)) as said, explain_disk_errors("the log"):
        raise error
    assert said.value is error
