"""Pushes that meet, and transfers that are cut, stalled or killed: nothing is mixed, nothing half written is used."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants, try_to_load_from_cache

import evae
from evae.hub import push_run

WRITER = "hf_writer"
REPO = "evae/replogle-ar"
OWN = "evae/my-model"  # without a card of its own, so any kind of model may go there
NEW_CLIENT = pytest.mark.skipif(huggingface_hub.__version__ < "1", reason="the client before 1.0 does not retry this")
FETCH = (
    "import sys; from huggingface_hub import snapshot_download; snapshot_download(sys.argv[1], cache_dir=sys.argv[2])"
)


@pytest.fixture
def child():
    """Start a Python process that speaks with the Hub; it is killed at the end of the test."""
    started = []

    def start(*arguments: str | Path) -> subprocess.Popen:
        environment = {**os.environ, "HF_HUB_OFFLINE": "0"}
        started.append(subprocess.Popen([sys.executable, *map(str, arguments)], env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_two_pushes_at_once(hub, login, trained_prior, monkeypatch):
    """One looks at the repository and another commits before it does: it is told, and nothing is mixed."""
    login(WRITER)
    create_commit = HfApi.create_commit

    def overtaken(self, *arguments, **options):
        monkeypatch.setattr(HfApi, "create_commit", create_commit)
        push_run(trained_prior, REPO)
        return create_commit(self, *arguments, **options)

    monkeypatch.setattr(HfApi, "create_commit", overtaken)
    with pytest.raises(evae.EvaeError) as caught:
        push_run(trained_prior, REPO)
    assert str(caught.value) == f"someone else wrote to '{REPO}' at the same time; retry."
    assert len(hub.repo(REPO).titles) == 2
    push_run(trained_prior, REPO)  # the retry
    assert evae.pipeline(REPO).checkpoint.is_prior


def test_two_pushes_in_parallel(hub, login, trained_prior, trained_tokenizer, monkeypatch):
    """Both have looked before either commits: one arrives whole, the other is told."""
    login(WRITER)
    create_commit, both, looked = HfApi.create_commit, threading.Barrier(2), threading.Event()

    def together(self, *arguments, **options):
        looked.set()
        both.wait(60)
        return create_commit(self, *arguments, **options)

    monkeypatch.setattr(HfApi, "create_commit", together)
    with ThreadPoolExecutor(2) as pool:
        pushes = {trained_prior: pool.submit(push_run, trained_prior, OWN)}
        assert looked.wait(60)  # transformers 4 patches torch while it loads a model: one at a time in a process
        pushes[trained_tokenizer] = pool.submit(push_run, trained_tokenizer, OWN)
    refused = {folder: push.exception() for folder, push in pushes.items() if push.exception() is not None}
    assert [str(error) for error in refused.values()] == [f"someone else wrote to '{OWN}' at the same time; retry."]
    (arrived,) = pushes.keys() - refused.keys()
    assert len(hub.repo(OWN).titles) == 2
    assert hub.repo(OWN).files()["model.safetensors"] == (arrived / "model.safetensors").read_bytes()
    assert hub.repo(OWN).files()["config.json"] == (arrived / "config.json").read_bytes()


def test_download_that_is_killed(on_the_hub, hub, hub_module, child):
    hub.faults.append(hub_module.Fault(path="/stored/", method="GET", times=1, cut=30_000, stall=True))
    process = child("-c", FETCH, on_the_hub, constants.HF_HUB_CACHE)
    assert hub.stalled.wait(60)
    process.kill()
    process.wait()
    assert try_to_load_from_cache(on_the_hub, "model.safetensors", cache_dir=constants.HF_HUB_CACHE) is None
    assert evae.pipeline(on_the_hub).checkpoint.is_prior
    path = try_to_load_from_cache(on_the_hub, "model.safetensors", cache_dir=constants.HF_HUB_CACHE)
    assert Path(path).read_bytes() == hub.repo(on_the_hub).files()["model.safetensors"]


def test_push_that_is_killed(hub, hub_module, login, trained_prior, child):
    login(WRITER)
    hub.faults.append(hub_module.Fault(path="/stored/", method="PUT", times=1, stall=True))
    process = child("-m", "evae.cli", "push", trained_prior, REPO)
    assert hub.stalled.wait(120)
    process.kill()
    process.wait()
    assert not hub.repo(REPO).files()
    push_run(trained_prior, REPO)
    assert len(hub.repo(REPO).titles) == 2
    assert evae.pipeline(REPO).checkpoint.is_prior


@pytest.mark.parametrize("status", [pytest.param(429, marks=NEW_CLIENT), 503])
def test_passing_fault_of_a_push_is_not_seen(hub, hub_module, login, trained_prior, status):
    login(WRITER)
    hub.faults.append(hub_module.Fault(status, path="/stored/", method="PUT", times=2))
    push_run(trained_prior, REPO)
    assert hub.faults[0].times == 0


def test_connection_that_always_breaks(on_the_hub, hub, hub_module):
    hub.faults.append(hub_module.Fault(path="/stored/", method="GET", cut=1000))
    with pytest.raises(evae.EvaeError) as caught:
        evae.pipeline(on_the_hub)
    assert (
        str(caught.value) == f"the connection to the Hub broke off at '{on_the_hub}'; retry, what came whole is kept."
    )
    hub.faults.clear()
    assert evae.pipeline(on_the_hub).checkpoint.is_prior


def test_offline_push(hub, login, trained_prior, run, offline):
    login(WRITER)
    offline()
    done = run("push", trained_prior, REPO)
    assert (
        done.err
        == f"error: the Hub cannot be reached to push '{REPO}'; check the network (and HF_HUB_OFFLINE), then retry.\n"
    )
