"""What all tests share: no network, no GPU, one thread, and a small trained model made once.

The tests run on the CPU, whatever the machine has: CUDA is hidden from this process and from those it starts. Only the
tests of tests/gpu/ start processes that see the GPU.
"""

import atexit
import os
import shutil
import signal
import socket
import tempfile

# Read by the libraries when they are imported, so they come before the imports.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="evae-tests-")  # no cache and no login of the person who tests
os.environ.pop("HF_TOKEN", None)
os.environ.pop("HF_TOKEN_PATH", None)
os.environ.pop("HF_HUB_CACHE", None)
os.environ.pop("HF_MODULES_CACHE", None)
# A free port, where tests/hub_server.py will listen.
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{socket.create_server(('127.0.0.1', 0)).getsockname()[1]}"
os.environ["MPLBACKEND"] = "Agg"
# Kept for tests/gpu/ before CUDA is hidden; processes of pytest-xdist inherit what the first process kept.
os.environ.setdefault("EVAE_TESTS_GPUS", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Ignored where the tests run in the background of a script, and in the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from filelock import FileLock
from transformers.utils import logging as transformers_logging

import evae
from evae.cli import main
from evae.common.logs import talkative
from evae.data.preparing.prepare import prepare_dataset
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.models.contract_evae import EvaeError
from evae.models.sampling_evae import check_compiler
from evae.training.prior import train_prior
from evae.training.settings import load_settings
from evae.training.tokenizer import train_tokenizer

HELD_OUT = "type_B"
THREADS = torch.get_num_threads()
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """The number of processes for `-n auto`: one a core that is ours, and no more than memory surely holds."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process is left alone with one at the end."""
    if unsteady := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"a test's name holds an address, which differs between processes: {unsteady}")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Make a file or a folder once for all processes that share the tests: `made_once(name, make)` gives its path.

    The first process that asks calls `make(path)`; the others wait for it.
    """
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "made_once"
    root.mkdir(exist_ok=True)

    def made(name: str, make: Callable[[Path], object]) -> Path:
        finished, folder = root / f"{name}.finished", root / name
        with FileLock(root / f"{name}.lock"):
            if not finished.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed at it
                folder.mkdir()
                make(folder / name)
                finished.touch()
        return folder / name

    return made


@pytest.fixture(autouse=True)
def threads_stay() -> Iterator[None]:
    """UMAP leaves OpenMP, and so torch, with another number of threads, and then the last bits of a run differ."""
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def verbosity_stays() -> None:
    """Commands that ran in this process leave transformers, and with it our remarks, silent."""
    transformers_logging.set_verbosity_warning()


@pytest.fixture
def all_remarks() -> Iterator[None]:
    """Remarks of every level are shown, as commands show them; in Python the verbosity of transformers holds."""
    with talkative():
        yield


@pytest.fixture
def compiler() -> None:
    """Skips a test that compiles where evae would find no compiler."""
    try:
        check_compiler()
    except EvaeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def screen() -> ad.AnnData:
    """A simulated screen: 900 cells x 60 genes, two cell types, four perturbations; read only."""
    return simulate_perturb_seq(n_cells=900, n_genes=60, n_cell_types=2, n_perturbations=4, seed=1)


@pytest.fixture(scope="session")
def screen_file(screen: ad.AnnData, made_once: Callable[..., Path]) -> Path:
    """The screen as a file; read only."""
    return made_once("screen.h5ad", screen.write_h5ad)


@pytest.fixture(scope="session")
def screen_split(screen: ad.AnnData) -> dict[str, list[str]]:
    """Two perturbations held out in one cell type."""
    names = [p for p in screen.obs["perturbation"].cat.categories if p != "control"]
    return {"cell_type": [HELD_OUT], "pert": names[:2]}


@pytest.fixture(scope="session")
def screen_dataset(screen_file: Path, screen_split: dict[str, list[str]], made_once: Callable[..., Path]) -> Path:
    """The dataset folder of the screen; read only."""

    def prepare(folder: Path) -> None:
        keys = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "control"}
        prepare_dataset(screen_file, folder, split=screen_split, progress=False, **keys)

    return made_once("screen_dataset", prepare)


TOKENIZER_SETTINGS = [
    *("max_steps=30", "batch_size=32", "warmup_steps=5", "eval_every=30", "save_every=30"),
    *("model.hidden_size=16", "model.num_attention_heads=2", "model.intermediate_size=32"),
    *("model.n_latents=4", "model.encoder_layers=1", "model.decoder_layers=1", "model.fsq_levels=[4, 4]"),
]
PRIOR_SETTINGS = [
    *("max_steps=30", "batch_size=32", "warmup_steps=5", "eval_every=30", "save_every=30"),
    *("model.hidden_size=16", "model.num_attention_heads=2", "model.intermediate_size=32"),
    *("model.num_hidden_layers=1",),
]


@pytest.fixture(scope="session")
def small_settings() -> dict[str, list[str]]:
    """Settings of both stages that train in a second."""
    return {"tokenizer": TOKENIZER_SETTINGS, "prior": PRIOR_SETTINGS}


@pytest.fixture(scope="session")
def trained_tokenizer(screen_dataset: Path, made_once: Callable[..., Path]) -> Path:
    """The folder of a barely trained tokenizer; read only."""

    def train(out: Path) -> None:
        places = [f"dataset={screen_dataset}", f"output_dir={out}"]
        train_tokenizer(load_settings("tokenizer", None, [*TOKENIZER_SETTINGS, *places]))

    return made_once("tokenizer", train)


@pytest.fixture(scope="session")
def trained_prior(screen_dataset: Path, trained_tokenizer: Path, made_once: Callable[..., Path]) -> Path:
    """The folder of a barely trained prior; read only."""

    def train(out: Path) -> None:
        places = [f"dataset={screen_dataset}", f"tokenizer={trained_tokenizer}", f"output_dir={out}"]
        train_prior(load_settings("prior", None, [*PRIOR_SETTINGS, *places]))

    return made_once("prior", train)


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """A prior trained on the screen by scripts/make_tiny_checkpoint.py; read only."""
    return Path(__file__).with_name("tiny_checkpoint")


@pytest.fixture(scope="session")
def pipe(tiny_checkpoint: Path) -> evae.Pipeline:
    return evae.pipeline(tiny_checkpoint, device="cpu")


@pytest.fixture
def controls(screen: ad.AnnData) -> ad.AnnData:
    return screen[screen.obs["perturbation"] == "control"].copy()


@pytest.fixture(scope="session")
def repeat_entries() -> Callable[[ad.AnnData], ad.AnnData]:
    """A copy of cells whose CSR rows hold many columns twice, with halves of a count: valid, and the same matrix."""

    def repeated(cells: ad.AnnData) -> ad.AnnData:
        dense = np.asarray(cells.X.toarray(), dtype=np.float32)
        rows, columns = np.nonzero(dense)
        values = dense[rows, columns]
        data = np.stack([values - 0.5, np.full_like(values, 0.5)], axis=1).ravel()
        ends = np.concatenate([[0], np.cumsum(2 * np.bincount(rows, minlength=len(dense)))])
        matrix = sp.csr_matrix((data, np.repeat(columns, 2), ends), shape=dense.shape)
        assert not matrix.has_canonical_format
        assert (matrix.toarray() == dense).all()
        return ad.AnnData(matrix, obs=cells.obs.copy(), var=cells.var.copy())

    return repeated


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the `evae` command in this process."""

    def command(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return command


@pytest.fixture(scope="session")
def decoded() -> Callable[[Path, Mapping[str, Any]], tuple[np.ndarray, np.ndarray]]:
    """Indices into the panel and counts of a row, by the lines that the card of its dataset folder gives."""

    def decode(folder: Path, cell: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        lines = (folder / "README.md").read_text().split("cell = next(iter(cells))\n")[1].split("```")[0]
        found: dict[str, Any] = {"np": np, "cell": cell}
        exec(lines, found)
        return found["indices"], found["counts"]

    return decode
