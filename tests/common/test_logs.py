"""Remarks go through Python's logging under "evae", at the verbosity of transformers unless the user sets another."""

import ast
import logging
from pathlib import Path

import pytest
from transformers.utils import logging as of_transformers

from evae.common.logs import ROOT, logger, talkative

PACKAGE = Path(__file__).parents[2] / "src" / "evae"
LOG = logger("evae.common.tests")


@pytest.fixture(autouse=True)
def as_before():
    level, verbosity = ROOT.level, of_transformers.get_verbosity()
    yield
    ROOT.setLevel(level)
    of_transformers.set_verbosity(verbosity)


def said(capsys):
    LOG.info("an info")
    LOG.warning("a warning [with brackets]")
    LOG.error("an error")
    out, err = capsys.readouterr()
    assert out == ""
    return [line.split()[1] for line in err.splitlines()]


def test_the_verbosity_of_transformers_holds(capsys):
    of_transformers.set_verbosity_warning()
    assert said(capsys) == ["warning", "error"]
    of_transformers.set_verbosity_info()
    assert said(capsys) == ["info", "warning", "error"]
    of_transformers.set_verbosity_error()
    assert said(capsys) == ["error"]


def test_a_level_of_our_own_logger_comes_first(capsys):
    of_transformers.set_verbosity_error()
    logging.getLogger("evae").setLevel(logging.INFO)
    assert said(capsys) == ["info", "warning", "error"]
    of_transformers.set_verbosity_info()
    logging.getLogger("evae").setLevel(logging.ERROR)
    assert said(capsys) == ["error"]


def test_commands_show_everything_and_leave_the_level_as_it_was(capsys):
    of_transformers.set_verbosity_error()
    before = ROOT.level
    with talkative():
        assert said(capsys) == ["info", "warning", "error"]
    with talkative(str.upper):
        assert said(capsys) == ["INFO", "WARNING", "ERROR"]
    assert ROOT.level == before
    assert said(capsys) == ["error"]


def test_other_handlers_hear_it_when_asked(monkeypatch):
    heard = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: heard.append(record.getMessage()))
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    LOG.warning("not there")
    monkeypatch.setattr(ROOT, "propagate", True)
    LOG.warning("there")
    assert heard == ["there"]


def test_the_library_prints_nothing():
    """Only the command line prints, and the method `print` of a result, which is asked to."""

    def prints(path):
        tree = ast.parse(path.read_text())
        program = 'if __name__ == "__main__"' in path.read_text()  # a process of its own, which has a function main
        names = ("print", "main") if program else ("print",)
        asked = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in names]
        allowed = {id(node) for function in asked for node in ast.walk(function)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and id(node) not in allowed:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in ("print", "Console") or ast.unparse(node.func) in ("sys.stdout.write", "sys.stderr.write"):
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}"

    library = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "cli"]
    assert [place for path in library for place in prints(path)] == []
