"""The rules of the house, read from the source: which way imports run, no pickle, files and functions of a size."""

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "evae"
SOURCES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))

CONTRACT = {f"evae.models.{file}_evae" for file in ("contract", "genes", "processing", "treatments")}
# The rooms of the house, and which others each may import; every room may import the input contract and itself.
# A room is a folder; where a folder has inner rooms, the files beside these are a room of the same name.
ROOMS: dict[str, set[str]] = {
    "models": set(),
    "common": set(),
    "data/reading": {"common"},
    "data/simulation": set(),
    "data": {"common"},
    "data/preparing": {"data", "data/reading", "common"},
    "data/streaming": {"data", "common"},
    "training/settings": set(),
    "training/resume": {"training/settings", "common", "data/streaming", "models"},
    "training/loop": {"training/settings", "training/resume", "common", "models"},
    "training": {"training/settings", "training/loop", "training/resume", "common", "data", "data/streaming", "models"},
    "effects": {"common", "data", "training", "models"},
    "finetuning": {
        *("training", "training/loop", "training/resume", "training/settings"),
        *("common", "data", "data/streaming", "models", "inference", "evaluation/cells"),
    },
    "inference": {
        *("common", "data", "data/reading", "data/streaming", "models", "effects"),
        *("evaluation/cells", "evaluation/metrics"),
    },
    "evaluation/cells": {"common", "data", "data/reading", "data/streaming"},
    "evaluation/metrics": {"common", "evaluation/cells"},
    "evaluation/systems": {"evaluation/cells", "common", "effects"},
    "evaluation/protocols": {"evaluation/cells", "evaluation/metrics", "evaluation/systems", "common"},
    "evaluation/report": {"evaluation/cells", "evaluation/metrics", "evaluation/systems", "common", "data/reading"},
    "evaluation": {f"evaluation/{room}" for room in ("cells", "metrics", "systems", "protocols", "report")}
    | {"common", "effects"},
    "plot": {
        *("common", "data/reading"),
        *("evaluation/cells", "evaluation/metrics", "evaluation/report", "evaluation/systems"),
    },
    "reversion": {
        *("common", "data/reading", "data/preparing", "inference"),
        *("evaluation/cells", "evaluation/metrics"),
    },
    "study": {
        *("common", "data", "data/preparing", "data/streaming"),
        *("training", "training/loop", "training/resume", "training/settings"),
        *("inference", "effects", "evaluation", "evaluation/metrics", "evaluation/systems", "models"),
    },
    "conversion": {"common", "data/reading", "models", "training"},
    "challenge": {"common", "data/reading", "evaluation", "evaluation/systems", "inference"},
    "app": {"common", "data/reading", "data/preparing", "inference", "evaluation/cells", "plot"},
    "hub": {"app", "common", "data", "data/streaming", "inference", "evaluation/report"},
    "cli": {
        *("common", "data", "data/reading", "data/preparing", "data/simulation", "data/streaming", "models"),
        *("training", "training/settings", "inference", "evaluation", "reversion", "study", "hub", "conversion"),
        *("challenge", "effects", "finetuning", "app", "plot", ""),
    },
    "": {"models", "inference", "finetuning"},
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


def module_of(path: Path) -> str:
    """The dotted name of a file; of a package for its `__init__.py`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in SOURCES}


def room_of(path: Path) -> str:
    return "/".join(path.relative_to(PACKAGE).parent.parts)


def imported(path: Path) -> Iterator[str]:
    """Dotted names of the modules of our own that a file imports, anywhere in it."""
    package = path.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "evae")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module.split(".")[0] == "evae":  # a name taken from a package may be a module of it
                yield from {f"{module}.{a.name}" if f"{module}.{a.name}" in FILES else module for a in node.names}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def offenders(paths: Iterable[Path], faults: Callable[[Path], Iterable[str]]) -> list[str]:
    return [f"{name(path)}: {fault}" for path in paths for fault in faults(path)]


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Every closed walk that a depth-first search meets."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> None:
        if node in trail:
            found.append([*trail[trail.index(node) :], node])
        elif node not in done:
            for other in sorted(arrows.get(node, ())):
                visit(other, [*trail, node])
            done.add(node)

    for node in sorted(arrows):
        visit(node, [])
    return found


def test_the_rooms_are_those_named_here():
    assert {room_of(path) for path in SOURCES} == set(ROOMS)


def test_a_room_imports_only_the_rooms_it_may():
    def faults(path: Path) -> Iterator[str]:
        room = room_of(path)
        for module in imported(path):
            other = room_of(FILES[module]) if module in FILES else "nowhere"
            own = path.name == "__init__.py" and other.startswith(f"{room}/")  # a face names what its rooms hold
            if other not in {room, *ROOMS[room]} and module not in CONTRACT and not own:
                yield f"imports {module}"

    assert offenders(SOURCES, faults) == []


def test_every_arrow_that_is_allowed_is_used():
    used: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in SOURCES:
        used[room_of(path)] |= {room_of(FILES[module]) for module in imported(path) if module in FILES}
    assert {room: others - used[room] for room, others in ROOMS.items() if others - used[room]} == {}


def test_rooms_and_files_stand_in_no_circle():
    assert circles(ROOMS) == []
    arrows = {module: set(imported(path)) - {module} for module, path in FILES.items() if path.name != "__init__.py"}
    assert circles(arrows) == []


def test_models_import_flat_siblings_only():
    """Only `from .layers_evae import X` survives the way to the Hub as custom code."""
    for path in (PACKAGE / "models").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, name(path)
                assert node.module, name(path)
                assert "." not in node.module, name(path)


def test_nothing_is_pickled():
    def faults(path: Path) -> Iterator[str]:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from {m.split(".")[0] for m in modules} & {"pickle", "cloudpickle", "dill"}
            owner = node.value if isinstance(node, ast.Attribute) else None
            if isinstance(owner, ast.Name) and node.attr in PICKLING.get(owner.id, ()):
                yield f"line {node.lineno}"

    assert offenders([*SOURCES, *SCRIPTS], faults) == []


def test_files_and_functions_fit_a_reader():
    def faults(path: Path) -> Iterator[str]:
        text = path.read_text()
        lines = len(text.splitlines())
        if lines > MAX_FILE:
            yield f"has {lines} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                if length > MAX_FUNCTION:
                    yield f"{node.name} has {length} lines"

    assert offenders([*SOURCES, *SCRIPTS], faults) == []


def test_every_file_says_what_it_is():
    assert (
        offenders(SOURCES, lambda path: [] if ast.get_docstring(ast.parse(path.read_text())) else ["says nothing"])
        == []
    )


def test_only_the_front_door_is_loose():
    assert [p.name for p in PACKAGE.glob("*.py")] == ["__init__.py"]


def test_the_map_of_the_code_names_every_room_and_script():
    tree = (ROOT / "CONTRIBUTING.md").read_text().split("<!-- tree -->")[1].split("```")[1]
    listed = set(re.findall(r"^ *([\w/.]+)/? ", tree, flags=re.MULTILINE))
    rooms = {room.split("/")[-1] for room in ROOMS if room}
    assert rooms <= {entry.rstrip("/").split("/")[-1] for entry in listed}
    assert {p.name for p in SCRIPTS} <= listed
