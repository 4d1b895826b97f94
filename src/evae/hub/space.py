"""Push the app as a Space: the page of `evae app` with a model inside, on the Hub.

A Space builds its environment from requirements.txt alone, and installs no wheel that lies beside it. So the package
itself goes along as it is here, with the versions that it works with here: a Space runs what was tried.
"""

import sys
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import yaml
from packaging.requirements import Requirement

from evae.app.controls import LabelColumns, controls_of
from evae.hub.push import MODEL_FILES, check_code, check_id, smoke_test
from evae.hub.upload import Bundle, upload
from evae.inference.adapter import ADAPTER
from evae.inference.checkpoint import load_checkpoint
from evae.inference.example import NAME, is_example
from evae.models.contract_evae import EvaeError

REPLACED = ("evae/*", "evae-*.dist-info/*", "models/*", "app.py", "requirements.txt", "controls.h5ad")
MOST_CONTROLS = 2_000
WHEELS = "--extra-index-url https://download.pytorch.org/whl/cpu"  # torch without CUDA, which a free Space cannot use
MAP = "umap-learn"  # of the extra `eval`, whose rest the app does not need
APP = '''"""The app of evae with one model; README.md says what it is."""

from evae.app import serve

serve(["{place}"], host="0.0.0.0", port=7860{controls})
'''
ABOUT = """
# {title}

How do single cells respond to a perturbation? Choose one, and see predicted beside control cells: where they lie, which
genes change and how surely, and the cells themselves as raw counts to download.

* Model: {model}
* Control cells: {controls} Your own may be uploaded; they are read within limits of time and memory, and not kept.
* Agents find the same as tools (MCP) under `/gradio_api/mcp/`.
* Predictions are hypotheses for experiments, not for clinical decisions.

Made by `evae push --space`, evae {version}. `requirements.txt` names the versions it was tried with.
"""


def push_space(
    run_dir: str | Path,
    repo_id: str,
    *,
    controls: str | Path | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> tuple[list[tuple[str, int]], str | None]:
    """Put the app on the Hub as a Space that holds a model, in one commit.

    Args:
        run_dir: folder of a trained prior, or "example".
        repo_id: where to, "name/space"; made if it does not exist.
        controls: file of control cells that the Space offers, at most 2,000 of them; the example has its own.
        private: make it private.
        dry_run: do everything but upload.

    Returns:
        What goes, as (path, bytes), and the address of the commit, None after a dry run.

    Raises:
        EvaeError: a model that does not load or predict, Gradio is not installed, a secret in a file, or a failure of
            the Hub.
    """
    check_id(repo_id, "space")
    files = package_files() | {"requirements.txt": requirements().encode()}
    title = repo_id.split("/")[1]
    if is_example(run_dir):
        place, model, own = (
            NAME,
            "the example of the package, THP-1 cells with CRISPR knock-outs.",
            "300 of these cells.",
        )
        if controls is not None:
            raise EvaeError("the example has control cells of its own; leave controls out.")
    else:
        place, model, own = f"models/{title}", f"`{title}`, in this Space.", "none come with it."
        files |= {f"{place}/{name}": content for name, content in _model_files(Path(run_dir)).items()}
    if controls is not None:
        control = load_checkpoint(run_dir).processor.control
        files["controls.h5ad"] = control_cells(Path(controls), str(control))
        own = "in `controls.h5ad`."
    option = ', controls="controls.h5ad"' if controls is not None else ""
    files["app.py"] = APP.format(place=place, controls=option).encode()
    about = ABOUT.format(title=title, model=model, controls=own, version=version("evae"))
    files["README.md"] = (front_matter(title) + about).encode()
    bundle = Bundle(repo_id, "space", files, REPLACED)
    bundle.check()
    return bundle.sizes(), None if dry_run else upload(bundle, private, f"Upload the app of {title} with evae")


def front_matter(title: str) -> str:
    """What the Hub reads of a Space's README."""
    said = {
        "title": title,
        "emoji": "🧬",
        "colorFrom": "green",
        "colorTo": "blue",
        "sdk": "gradio",
        "sdk_version": _installed("gradio"),
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "short_description": "Predicted beside control cells, with evae",
        "license": "mit",
        "tags": ["biology", "single-cell", "perturbation", "evae", "mcp-server"],
    }
    return f"---\n{yaml.safe_dump(said, sort_keys=False, allow_unicode=True)}---\n"


def requirements() -> str:
    """requirements.txt: what the package and its app need, in the versions that are installed here."""
    wanted = [Requirement(line) for line in requires("evae") or ()]
    if "gradio" not in {need.name for need in wanted}:
        raise EvaeError("evae was installed before its code had an app; install it again: pip install 'evae[app]'")
    lines = [WHEELS]
    for need in wanted:
        if need.marker is None or need.marker.evaluate({"extra": "app"}) or need.name == MAP:
            extras = f"[{','.join(sorted(need.extras))}]" if need.extras else ""
            lines.append(f"{need.name}{extras}=={_installed(need.name)}")
    return "\n".join(lines) + "\n"


def package_files() -> dict[str, Path | bytes]:
    """The package as it is here, by path in the Space, with the metadata that tell its version."""
    root, release = Path(__file__).parents[1], version("evae")
    found: dict[str, Path | bytes] = {
        f"evae/{path.relative_to(root).as_posix()}": path
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    told = f"Metadata-Version: 2.1\nName: evae\nVersion: {release}\n"
    return found | {f"evae-{release}.dist-info/METADATA": told.encode()}


def control_cells(path: Path, control: str) -> bytes:
    """The control cells of a file as an h5ad file, with nothing but counts, genes and cell types."""
    cells, _ = controls_of(path, LabelColumns(usual=control), MOST_CONTROLS)
    with tempfile.TemporaryDirectory() as folder:
        cells.write_h5ad(Path(folder) / "controls.h5ad", compression="gzip")
        return (Path(folder) / "controls.h5ad").read_bytes()


def _model_files(folder: Path) -> dict[str, Path | bytes]:
    if not folder.is_dir():
        raise EvaeError(f"no such folder: {folder}")
    if (folder / ADAPTER).is_file():
        raise EvaeError(
            f"{folder} is an adapter, which is no whole model; save what pipe.model and pipe.processor hold."
        )
    checkpoint = load_checkpoint(folder)
    if not checkpoint.is_prior:
        raise EvaeError(f"{folder} is a tokenizer, which does not predict; give a prior.")
    smoke_test(checkpoint)
    files: dict[str, Path | bytes] = {path.name: path for pattern in MODEL_FILES for path in folder.glob(pattern)}
    check_code(files)
    return files


def _installed(name: str) -> str:
    try:
        return version(name).split("+")[0]  # without the build, such as +cpu, which the index does not name
    except PackageNotFoundError:
        raise EvaeError(f"a Space needs to know the version of {name}: pip install 'evae[app,eval]'") from None
