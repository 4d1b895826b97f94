"""Bars move on standard error where somebody watches; elsewhere nothing is shown."""

import subprocess
import sys

import pytest

from evae.common.progress import progress_bar, watched


@pytest.fixture
def terminal(monkeypatch, capsys):
    """Somebody watches."""
    monkeypatch.setattr("evae.common.progress.watched", lambda: True)
    return capsys


def test_a_stage_counts_its_units(terminal):
    with progress_bar(True) as bar:
        advance = bar.start("reading cells", 8, done=2)
        advance(4)
        advance(2, "loss 0.5")
    out, err = terminal.readouterr()
    assert out == ""
    assert "reading cells" in err
    assert "8/8" in err
    assert "loss 0.5" in err
    assert "cells/s" in err


@pytest.mark.parametrize(("work", "total", "told"), [(["ab", "c"], None, "2/2"), (iter(["ab", "c"]), 3, "3/3")])
def test_work_is_tracked_as_it_is_done(terminal, work, total, told):
    with progress_bar(True, unit="letters") as bar:
        size = len if total else lambda item: 1
        assert list(bar.track(work, "spelling", total, size)) == ["ab", "c"]
    assert told in terminal.readouterr().err


def test_nothing_is_shown_where_nobody_watches(capsys):
    for show in (True, False):  # standard error is no terminal here
        with progress_bar(show) as bar:
            bar.start("reading", 8)(3)
            assert list(bar.track(range(3), "counting")) == [0, 1, 2]
            assert not bar.moves
    assert capsys.readouterr() == ("", "")


def test_nothing_is_shown_to_one_who_does_not_want_it(terminal):
    with progress_bar(False) as bar:
        bar.start("reading", 8)(3)
    assert terminal.readouterr() == ("", "")


def test_bars_may_be_nested(terminal):
    with progress_bar(True) as outer, progress_bar(True) as inner:
        assert list(inner.track(outer.track([1, 2], "outer"), "inner", 2)) == [1, 2]
    assert terminal.readouterr().err.count("2/2") >= 2


def test_a_terminal_watches(monkeypatch):
    assert not watched()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert watched()


def test_a_notebook_watches(monkeypatch):
    """The kernel's standard error is no terminal, and yet somebody looks at it."""

    class Shell:
        config = ("IPKernelApp",)

    class IPython:
        shell = Shell()

        @classmethod
        def get_ipython(cls):
            return cls.shell

    assert not watched()
    monkeypatch.setitem(sys.modules, "IPython", IPython)
    assert watched()
    monkeypatch.setattr(IPython, "shell", None)  # imported, but no kernel
    assert not watched()


def test_a_command_in_a_script_leaves_no_bars(tmp_path):
    code = "from evae.common.progress import progress_bar\nwith progress_bar(True) as b: list(b.track(range(9), 'x'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
