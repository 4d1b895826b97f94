"""Shards of a Hub dataset come one after another, in one thread, each once."""

import threading
from pathlib import Path

import huggingface_hub
import pytest

from evae.data.store import ShardStore
from evae.models.contract_evae import EvaeError


class Client:
    """A Hub client as far as it matters here: all threads share its session, which a failed connection closes."""

    def __init__(self, folder: Path):
        self.folder, self.session = folder, None
        self.began, self.go_on = threading.Event(), threading.Event()
        self.asked: list[str] = []
        self.failing: set[str] = set()

    def hf_hub_download(self, repo_id, name, **where):
        self.asked.append(name)
        self.session = self.session or {"get": "content"}  # what `get_session` does
        if name in self.failing:
            self.session = None  # what `close_session` does
            self.failing.discard(name)
            raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")
        if name == "slow":
            self.began.set()
            self.go_on.wait()
        content = self.session.get("get")  # an AttributeError where another thread has closed it meanwhile
        part = self.folder / f"{name}.part"
        part.write_text(content)
        return str(part.rename(self.folder / name))  # whole or not there, as the real client does it

    def try_to_load_from_cache(self, repo_id, name, **where):
        return str(self.folder / name) if (self.folder / name).is_file() else None


@pytest.fixture
def client(tmp_path, monkeypatch) -> Client:
    client = Client(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", client.hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", client.try_to_load_from_cache)
    return client


def fetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "evae-fetch"]


def test_a_failed_fetch_takes_the_session_from_no_other(client, tmp_path):
    """Of another dataset, too: while one shard is on its way, the connection for the next one fails."""
    client.failing = {"lost"}
    one, other = ShardStore(tmp_path, "evae/one"), ShardStore(tmp_path, "evae/other")
    one.expect("slow")
    client.began.wait()
    first = fetching()
    other.expect("lost")
    for thread in fetching():
        if thread not in first:
            thread.join()  # a thread of its own would have closed the session by now
    client.go_on.set()
    assert one.path("slow").read_text() == "content"
    assert other.path("lost").read_text() == "content"  # what failed ahead of time is tried once more
    assert client.asked == ["slow", "lost", "lost"]


def test_what_was_fetched_is_not_asked_for_again(client, tmp_path):
    store = ShardStore(tmp_path, "evae/one")
    client.go_on.set()
    for _ in range(2):
        store.expect("slow")
        assert store.path("slow").is_file()
    assert client.asked == ["slow"]
    assert ShardStore(tmp_path, "evae/one").path("slow").is_file()
    assert client.asked == ["slow"]


def test_a_lasting_failure_is_told_where_the_shard_is_read(client, tmp_path, monkeypatch):
    def lost(repo_id, name, **where):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lost)
    store = ShardStore(tmp_path, "evae/one")
    store.expect("lost")
    with pytest.raises(EvaeError, match="the Hub cannot be reached"):
        store.path("lost")


def test_the_thread_ends_when_nothing_is_waiting(client, tmp_path):
    store = ShardStore(tmp_path, "evae/one")
    client.go_on.set()
    store.expect("slow")
    for thread in fetching():
        thread.join()
    assert fetching() == []
    assert store.path("another").is_file()  # a new one does what comes later
