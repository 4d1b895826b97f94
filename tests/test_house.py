"""The rules of the house, read from the source: which way imports run, no pickle, files and functions of a size."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "evae"
SOURCES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))

CONTRACT = ("evae.models.contract_evae", "evae.models.processing_evae")
USE = ("evae.loading", "evae.prediction", "evae.drawing", "evae.pipeline", "evae.hold_out")
# What the files of each part may import of our own; a part is a folder or a file of the package.
ALLOWED: dict[str, tuple[str, ...]] = {
    "models": ("evae.models",),
    "data": ("evae.data", "evae.hub_errors", *CONTRACT),
    "training": ("evae.training", "evae.data", "evae.models"),
    "evaluation": ("evae.evaluation", "evae.data", *CONTRACT),
    "reversion": (
        "evae.reversion",
        "evae.data",
        "evae.evaluation",
        "evae.embedding",
        "evae.loading",
        *CONTRACT,
    ),
    "hub": ("evae.hub", "evae.hub_errors", "evae.data", "evae.evaluation.model_index", *USE, *CONTRACT),
    "hub_errors.py": CONTRACT,
    "loading.py": ("evae.models", "evae.hub_errors"),
    "prediction.py": ("evae.models",),
    "drawing.py": ("evae.models", "evae.data", "evae.loading", "evae.prediction"),
    "embedding.py": ("evae.models", "evae.data", "evae.loading"),
    "embedding_parts.py": CONTRACT,
    "embedding_files.py": ("evae.models", "evae.data", "evae.loading", "evae.embedding", "evae.embedding_parts"),
    "pipeline.py": ("evae.models", "evae.loading", "evae.prediction", "evae.drawing", "evae.embedding"),
    "hold_out.py": ("evae.models", "evae.data", *USE),
    "presets.py": CONTRACT,
    "__init__.py": ("evae.models", "evae.pipeline"),
    "study": ("evae.study", "evae.training", "evae.evaluation", "evae.data", "evae.models", "evae.presets", *USE),
    "cli": ("evae",),
}
MAX_FILE = 300
MAX_FUNCTION = 60
PICKLING = {
    "torch": {"load", "save"},
    "numpy": {"load"},
    "np": {"load"},
    "pd": {"read_pickle"},
    "pandas": {"read_pickle"},
    "joblib": {"load", "dump"},
}


def imported(path: Path) -> Iterator[str]:
    """Absolute names of the modules that a file imports, of our own package only."""
    package = path.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "evae")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module.split(".")[0] == "evae":
                yield from ([module] if node.module else [f"{module}.{a.name}" for a in node.names])


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_run_one_way(path):
    allowed = ALLOWED[path.relative_to(PACKAGE).parts[0]]
    for module in imported(path):
        assert any(module == a or module.startswith(a + ".") for a in allowed), f"imports {module}"


def test_every_part_is_used_by_the_rule():
    assert {p.relative_to(PACKAGE).parts[0] for p in SOURCES} == set(ALLOWED)


def test_models_import_flat_siblings_only():
    """Only `from .layers_evae import X` survives the way to the Hub as custom code."""
    for path in (PACKAGE / "models").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, name(path)
                assert node.module, name(path)
                assert "." not in node.module, name(path)


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=name)
def test_nothing_is_pickled(path):
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {m.split(".")[0] for m in modules} & {"pickle", "cloudpickle", "dill"}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.attr not in PICKLING.get(node.value.id, ()), f"line {node.lineno}"


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=name)
def test_files_and_functions_fit_a_reader(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert length <= MAX_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_file_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_readme_tree_names_every_file_and_no_other():
    tree = (ROOT / "README.md").read_text().split("<!-- tree -->")[1].split("```")[1]
    listed = set(re.findall(r"^ *([\w/.]+\.py) ", tree, flags=re.MULTILINE))
    existing = {p.name for p in SOURCES if p.name not in ("__init__.py", "__main__.py")} | {p.name for p in SCRIPTS}
    assert listed - {"__init__.py"} == existing
