"""The tests' own Hub, and models in it."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import datasets
import pytest
import transformers
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import _http

import evae

SERVER = Path(__file__).parents[1] / "hub_server.py"
WRITER, READER, STRANGER = "hf_writer", "hf_reader", "hf_stranger"
MODEL = "evae/tiny-ar"


@pytest.fixture(scope="session")
def hub_module() -> ModuleType:
    """tests/hub_server.py."""
    spec = importlib.util.spec_from_file_location("hub_server", SERVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hub_server"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def running_hub(hub_module: ModuleType) -> Iterator:
    server = hub_module.HubServer(urlsplit(constants.ENDPOINT).port)
    server.start()
    yield server
    server.stop()


def set_offline(monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    """What HF_HUB_OFFLINE does, in a process that has read it already, whatever the versions of the libraries."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    if hasattr(transformers.utils.hub, "_is_offline_mode"):  # transformers 4
        monkeypatch.setattr(transformers.utils.hub, "_is_offline_mode", offline)
    if hasattr(_http, "reset_sessions"):  # huggingface_hub 0
        _http.reset_sessions()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Go offline."""
    return lambda: set_offline(monkeypatch, True)


@pytest.fixture
def hub(running_hub, hub_module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """An empty Hub with three users, and a client with an empty cache that is allowed to speak with it."""
    running_hub.users |= {
        WRITER: hub_module.User("maker", "write", ("evae",)),
        READER: hub_module.User("maker", "read", ("evae",)),
        STRANGER: hub_module.User("stranger"),
    }
    set_offline(monkeypatch, False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # the client's pauses between its attempts
    yield running_hub
    if running_hub._server is None:
        running_hub.start()
    running_hub.clear()
    if hasattr(_http, "reset_sessions"):
        _http.reset_sessions()


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Log in with a token, or out with None."""

    def use(token: str | None) -> None:
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
        else:
            monkeypatch.setenv("HF_TOKEN", token)

    return use


@pytest.fixture(scope="session")
def pipe(trained_prior: Path) -> evae.Pipeline:
    """The prior that the tests of this folder push, from its local folder."""
    return evae.pipeline(trained_prior, device="cpu")


@pytest.fixture
def on_the_hub(hub, trained_prior: Path) -> str:
    """The id of a public model in the Hub."""
    api = HfApi(token=WRITER)
    api.create_repo(MODEL)
    api.upload_folder(repo_id=MODEL, folder_path=trained_prior, ignore_patterns=["checkpoints/*", "log.jsonl"])
    return MODEL
