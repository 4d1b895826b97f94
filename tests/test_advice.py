"""The mends that messages name exist: options, commands and settings; and those of the command line work when taken."""

import ast
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

from evae.cli import app
from evae.models import EvaeARConfig, EvaeConfig, EvaeFlowConfig, EvaeMDLMConfig
from evae.models.contract_evae import EvaeError
from evae.training.settings import KINDS, load_settings, model_fields

PACKAGE = Path(__file__).parents[1] / "src" / "evae"
OF_LAUNCHERS = {"--nproc_per_node", "--num_processes"}  # torchrun and accelerate launch
CONFIGS = (EvaeConfig, EvaeARConfig, EvaeMDLMConfig, EvaeFlowConfig)


def messages(path: Path) -> Iterator[str]:
    """The texts of a file that are no docstrings; `{}` stands where a value is put in."""
    tree = ast.parse(path.read_text())
    quiet: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):  # a docstring
            quiet.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            quiet |= {id(part) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in quiet:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def commands(group: Any = None, before: str = "") -> dict[str, set[str]]:
    """The options of every command, by its name."""
    found = {}
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, f"{before}{name} ")
        found[f"{before}{name}"] = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    return found


COMMANDS = commands()
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "model_card.py"]  # which holds Python code


def test_every_option_that_a_message_names_exists():
    """In a command's own file, as an option of that command."""
    known = set().union(*COMMANDS.values()) | OF_LAUNCHERS | {"--version"}
    scripts = {"published.py": {"--downloads", "--dask", "--licence"}}  # of scripts/prepare_*.py, which it serves
    scripts["space.py"] = {"--extra-index-url"}  # of pip, in the requirements.txt that it writes
    for path in FILES:
        own = {
            o for name, options in COMMANDS.items() if name.split()[0] == path.stem.replace("_", "-") for o in options
        }
        allowed = own | OF_LAUNCHERS if own and path.parent.name == "cli" else known
        named = {option for text in messages(path) for option in re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text)}
        assert named <= allowed | scripts.get(path.name, set()), path


def test_every_command_that_a_message_names_exists():
    for path in FILES:
        for text in messages(path):
            for name in re.findall(r"`evae ([a-z-]+)", text):
                assert name in COMMANDS, (path, text)


def test_every_example_of_a_help_stands_by_itself():
    """Lines without a blank one between them are shown as one paragraph."""
    for path in (PACKAGE / "cli").glob("*.py"):
        for function in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)):
            for paragraph in (ast.get_docstring(function) or "").split("\n\n"):
                assert "Example:" not in paragraph[1:], (path, paragraph)


def test_every_setting_that_a_message_names_exists_and_takes_the_value():
    of_models = {field for config in CONFIGS for field in model_fields(config)}
    named = []
    for path in (PACKAGE / "training").rglob("*.py"):
        for text in messages(path):
            named += re.findall(r"(?<![\w.])((?:model\.)?[a-z_]+)=(\w[\w.:]*)?", text.replace("write key=value", ""))
    assert len({name for name, _ in named}) > 5
    for name, value in named:
        value = value.rstrip(".:")
        if name.startswith("model."):
            assert name.removeprefix("model.") in of_models, name
        else:
            kinds = [kind for kind, cls in KINDS.items() if name in cls.__dataclass_fields__]
            assert kinds, name
            if value and value not in ("FILE", "DIR", "N"):
                load_settings(kinds[0], None, [f"{name}={value}"])


@pytest.fixture
def small(screen_dataset, small_settings, tmp_path):
    """The command of a training that takes a second, with its folder."""
    places = (f"dataset={screen_dataset}", f"output_dir={tmp_path / 'run'}")
    return ("train", "tokenizer", "--config", "tiny", *small_settings["tokenizer"], *places)


def refused(run, *words):
    outcome = run(*words)
    assert outcome.code == 2, outcome
    return outcome.err


def test_the_mends_of_a_folder_that_holds_a_run(run, small, tmp_path):
    """Each one that is offered is taken, and the training goes through."""
    assert run(*small).code == 0
    for change in ((), ("max_steps=31",), ("batch_size=16",), ("learning_rate=0.5", "max_steps=40")):
        if not change:  # as if killed
            (tmp_path / "run" / "model.safetensors").unlink()
        said = refused(run, *small, *change)
        offered = re.findall(r"(resume|overwrite)=true", said)
        assert offered, said
        for mend in offered:
            folder = shutil.copytree(tmp_path / "run", tmp_path / f"{mend} {len(change)} {change[:1]}")
            outcome = run(*small, *change, f"output_dir={folder}", f"{mend}=true")
            assert outcome.code == 0, outcome.err
        if not change:
            assert offered == ["resume", "overwrite"]
            assert run(*small, "resume=true").code == 0


def test_the_mend_of_a_batch_that_is_too_large(run, small):
    said = refused(run, *small, "batch_size=100000")
    assert run(*small, "batch_size=" + re.search(r"batch_size of at most (\d+)", said)[1]).code == 0


def test_the_mend_of_a_perturbation_without_training_cells(run, screen, screen_file, tmp_path, small_settings):
    (tmp_path / "split.json").write_text(
        json.dumps({"cell_type": list(screen.obs["cell_type"].cat.categories), "pert": [screen_name(screen)]})
    )
    common = ("prepare", screen_file, "--control", "control", "--out")
    outcome = run(*common, tmp_path / "data", "--split", tmp_path / "split.json")
    assert outcome.code == 0
    assert "no cell is left to train on" in outcome.err
    prior = ("train", "prior", "--config", "tiny", *small_settings["prior"], "tokenizer=counts", "max_steps=2")
    prior += ("model.source_cells=0", "model.condition_on_effect=false")
    places = (f"dataset={tmp_path / 'data'}", f"output_dir={tmp_path / 'run'}")
    said = refused(run, *prior, *places)
    assert "perturbation_features=FILE" in said
    assert "--split" in said
    assert said == refused(run, *prior, *places, "--dry-run")
    names = [p for p in screen.obs["perturbation"].cat.categories if p != "control"]
    (tmp_path / "vectors.csv").write_text("name,a\n" + "".join(f"{name},{i}\n" for i, name in enumerate(names)))
    outcome = run(*prior, *places, f"perturbation_features={tmp_path / 'vectors.csv'}")
    assert outcome.code == 0, outcome.err
    assert run(*common, tmp_path / "other", "--split", "random:0.1").code == 0
    outcome = run(*prior, f"dataset={tmp_path / 'other'}", f"output_dir={tmp_path / 'second'}")
    assert outcome.code == 0, outcome.err


def screen_name(screen) -> str:
    return next(str(p) for p in screen.obs["perturbation"].cat.categories if p != "control")


def test_a_dry_run_refuses_what_the_training_would_and_leaves_nothing(run, small, tmp_path):
    for wrong in ("model.hidden_size=15", "model.hiden_size=8", "batch_size=100000", "dataset=nowhere/at/all"):
        said = refused(run, *small, wrong, "--dry-run")
        assert said == refused(run, *small, wrong)
    outcome = run(*small, "--dry-run")
    assert outcome.code == 0
    shown = tmp_path / "shown.yaml"
    shown.write_text(outcome.out)
    assert not (tmp_path / "run").exists()
    settings = load_settings("tokenizer", shown)
    assert (settings.max_steps, settings.model["hidden_size"]) == (30, 16)
    assert "n_genes" not in settings.model  # the dataset's
    with pytest.raises(EvaeError):
        load_settings("prior", shown)


@pytest.mark.parametrize("model_type", ["evae_ar", "evae_mdlm", "evae_flow"])
def test_a_dry_run_of_a_prior_before_its_tokenizer_is_trained(run, screen_dataset, tmp_path, model_type):
    """With every preset, as a script does that looks at all its settings first."""
    places = (f"dataset={screen_dataset}", f"tokenizer={tmp_path / 'later'}", f"output_dir={tmp_path / 'run'}")
    for preset in ("tiny", "small", "base"):
        outcome = run("train", "prior", "--config", preset, f"model_type={model_type}", *places, "--dry-run")
        assert outcome.code == 0, outcome.err
        assert "not checked: the tokenizer" in outcome.err
    assert not list(tmp_path.iterdir())


def test_the_help_of_a_training_lists_every_setting(run):
    for stage, cls in KINDS.items():
        shown = run("train", stage, "--help").out
        for name in (field.name for field in fields(cls)):
            assert f"│ {name} " in shown, name
        assert "optimiser updates" in shown


def test_commands_that_a_message_quotes_can_be_split():
    for path in FILES:
        for text in messages(path):
            for quoted in re.findall(r"`(evae [^`]+)`", text):
                assert shlex.split(quoted)[1] in COMMANDS
