"""How the command starts: what it says at once, and what it does not import before it works."""

import json
import os
import subprocess
import sys
import warnings
from importlib import import_module

import pytest

from evae.cli import options
from evae.cli.terminal import plain_warnings
from evae.evaluation import SUITES
from evae.evaluation.run import EXTRA_BASELINES
from evae.inference.embedding import KINDS
from evae.reversion import PRESETS
from evae.reversion.benchmark import BASELINES

HEAVY = ("torch", "transformers", "sklearn", "ot", "matplotlib", "anndata", "datasets", "accelerate")
ASK = f"""
import json, sys
from evae.cli import main
for words in json.load(sys.stdin):
    try:
        main(words)
    except SystemExit as stop:
        print(stop.code, [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
AT_ONCE = [  # words, exit code
    (["--help"], 0),
    (["--version"], 0),
    (["train", "prior", "--help"], 0),
    (["evaluate", "--help"], 0),
    (["nonsense"], 2),
    (["predict", "--nonsense"], 2),
    (["prepare", "no.h5ad", "--control", "c", "--out", "o"], 2),
    (["prepare", "taken", "--control", "c", "--out", "o", "--split", "random:0.1", "--hold-out-cell-type", "x"], 2),
    (["train", "tokenizer", "dataset=d", "output_dir=o", "max_step=3"], 2),
    (["train", "prior", "--config", "tyny"], 2),
    (["train", "prior"], 2),
    (["predict", "no", "--held-out", "data", "--out", "o.h5ad"], 2),
    (["predict", "no/model", "--controls", "no.h5ad", "--perturbation", "p", "--out", "o.h5ad"], 2),
    (["predict", "no/model", "--perturbation", "p", "--out", "taken"], 2),
    (["embed", "no/model", "no.h5ad", "--out", "o.h5ad"], 2),
    (["embed", "no/model", "taken", "--out", "o.txt"], 2),
    (["evaluate", "no.h5ad", "--dataset", "data"], 2),
    (["evaluate", "taken", "--dataset", "data", "--suite", "all"], 2),
    (["reversion", "no.h5ad"], 2),
    (["study", "no.yaml"], 2),
    (["push", "no", "me/model"], 2),
    (["app", "no"], 2),
    (["app", "--controls", "no.h5ad"], 2),
    (["push-dataset", "no", "me/data"], 2),
    (["convert", "no", "--genes", "taken", "--out", "o"], 2),
    (["simulate", "taken"], 2),
]


COMPARE = """
import sys
import evae.cli
from evae.evaluation import evaluate
from evae.evaluation.cells.inputs import Data  # as the command imports it
print([name for name in ("torch", "transformers", "sklearn", "ot", "matplotlib", "scipy.stats") if name in sys.modules])
"""


def test_an_evaluation_loads_only_what_its_suite_needs():
    """Most of the memory of a small evaluation was that of libraries which it did not use."""
    done = subprocess.run([sys.executable, "-c", COMPARE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]


def test_help_and_refusals_import_nothing_heavy(tmp_path):
    """One process for all: what one of them imported would show in those after it."""
    (tmp_path / "taken").write_text("precious")
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps([words for words, _ in AT_ONCE]), cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    answers = [line for line in done.stderr.splitlines() if line[:2] in ("0 ", "2 ")]
    assert answers == [f"{code} []" for _, code in AT_ONCE], done.stderr
    assert done.stderr.count("error: ") == len([1 for words, code in AT_ONCE if code]) - 2  # two of click's own


@pytest.mark.parametrize("program", [["-m", "evae.cli"], ["evae"]])
def test_every_way_to_start_the_command_is_light(tmp_path, program):
    """The script that pip writes is called `evae` and imports `evae.cli`."""
    if program == ["evae"]:
        (tmp_path / "evae").write_text("import sys\nfrom evae.cli import main\nsys.exit(main())\n")
    look = f"import atexit, sys; atexit.register(lambda: print([n for n in {HEAVY} if n in sys.modules]))"
    (tmp_path / "sitecustomize.py").write_text(look)
    paths = [str(tmp_path), os.environ.get("PYTHONPATH")]
    done = subprocess.run(
        [sys.executable, *program, "embed", "nowhere", "nothing.h5ad", "--out", "x.h5ad"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: no such model folder: nowhere\n"
    assert done.stdout == "[]\n"


def test_importing_the_package_registers_its_classes(tiny_checkpoint):
    """Before anything else of the package was asked for."""
    code = (
        "import evae; from transformers import AutoConfig, AutoModel, AutoProcessor\n"
        "for auto in (AutoConfig, AutoModel, AutoProcessor):\n"
        "    print(type(auto.from_pretrained(sys.argv[1])).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + code, tiny_checkpoint], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["EvaeARConfig", "EvaeARForCausalLM", "EvaeProcessor"], done.stderr


def test_names_that_the_help_tells_are_those_that_exist():
    """They are written down in the commands, so that telling them imports nothing."""
    evaluate, reversion = import_module("evae.cli.evaluate"), import_module("evae.cli.reversion")
    assert set(evaluate.SUITES) == set(SUITES)
    assert set(evaluate.BASELINES) == set(EXTRA_BASELINES)
    assert set(reversion.PRESETS) == set(PRESETS)
    assert set(reversion.BASELINES) == set(BASELINES)
    assert set(options.EMBEDDINGS) == set(KINDS)


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_threads_sleep_while_they_wait_unless_told_otherwise(given):
    told = (
        "import os; from evae.cli import main\ntry: main(['--version'])\nfinally: print(os.getenv('OMP_WAIT_POLICY'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    done = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == given.get("OMP_WAIT_POLICY", "PASSIVE")


def test_a_warning_is_one_line_without_a_place_in_the_code():
    before = warnings.formatwarning
    with plain_warnings(str.upper):
        assert warnings.formatwarning("too\n few", UserWarning, "file.py", 3) == "warning: TOO FEW\n"
        assert "file.py:3" in warnings.formatwarning("old", DeprecationWarning, "file.py", 3)
    assert warnings.formatwarning is before
