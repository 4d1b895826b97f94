"""Where the files of a dataset lie: in its folder, or on the Hub, whose shards come one by one as they are read."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from evae.models.contract_evae import EvaeError

CELL_FILES = (".h5ad", ".h5", ".h5mu", ".h5seurat", ".loom", ".zarr", ".mtx", ".csv", ".tsv", ".rds", ".gz")
NEED_CONVERSION = (".csv", ".tsv", ".rds", ".h5seurat")
SMALL_FILES = ["*.json", "genes.parquet", "perturbations.parquet", "cell_types.parquet", "treatments.parquet"]


def resolve_dataset(path_or_id: str | Path, split: str | None = None) -> Path:
    """The local folder of a dataset given as a folder or as a Hub id; the one place where that is decided.

    Args:
        path_or_id: a folder made by `prepare_dataset`, or an id such as "evae/replogle".
        split: fetch the cells of this split too; by default only the small files.

    Raises:
        EvaeError: neither a dataset folder nor a dataset on the Hub.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        if not (folder / "dataset.json").is_file():
            raise EvaeError(f"{folder} is not a dataset folder (no dataset.json); make one {_from_cells(folder)}")
        return folder
    if folder.is_file() or folder.name.lower().endswith(CELL_FILES):
        raise EvaeError(f"{folder} is a file, not a dataset folder; make one {_from_cells(folder)}")
    parts = str(path_or_id).split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in (".", ".."):
        several = "," in str(path_or_id)
        fix = f"for several write [{path_or_id}]" if several else "make one with `evae prepare`, or give a Hub id"
        raise EvaeError(f"no such dataset folder: {path_or_id}; {fix}.")
    from huggingface_hub import snapshot_download  # slow to import, and not needed for folders

    from evae.common.hub import explain_hub_errors

    with explain_hub_errors(str(path_or_id), "dataset"):
        local = snapshot_download(
            str(path_or_id),
            repo_type="dataset",
            allow_patterns=SMALL_FILES + ([f"data/{split}-*.parquet"] if split else []),
        )
    if not (Path(local) / "dataset.json").is_file():
        raise EvaeError(f"the Hub dataset '{path_or_id}' was not made by `evae prepare` (no dataset.json).")
    return Path(local)


def _from_cells(path: Path) -> str:
    """How cells become a dataset folder, in words: the command, and, where they are in another format, which."""
    if path.is_dir() and not any((path / mark).is_file() for mark in ("zarr.json", ".zgroup", ".zattrs")):
        return "with `evae prepare`."
    readable = not path.name.lower().removesuffix(".gz").endswith(NEED_CONVERSION)
    made = (
        f"with `evae prepare {path if readable else 'FILE.h5ad'} --control LABEL --out FOLDER`, and name that FOLDER."
    )
    return made if readable else f"{made} `evae prepare {path}` says how it becomes an h5ad file."


class Fetcher:
    """Runs one fetch after another in one background thread, which ends when none is waiting.

    All of them in one thread, because the threads of a process share one session of the Hub client, and the client
    closes it when a connection fails, whoever else is using it. The thread does not keep the process from ending.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[Path], Callable[[], Path]]] = deque()
        self._thread: threading.Thread | None = None

    def submit(self, fetch: Callable[[], Path]) -> "Future[Path]":
        """Have `fetch` called; the future holds what it returns or raises."""
        future: Future[Path] = Future()
        with self._lock:
            self._waiting.append((future, fetch))
            if self._thread is None or not self._thread.is_alive():  # not alive: the process was forked
                self._thread = threading.Thread(target=self._work, daemon=True, name="evae-fetch")
                self._thread.start()
        return future

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                future, fetch = self._waiting.popleft()
            try:
                future.set_result(fetch())
            except BaseException as error:
                future.set_exception(error)


_FETCHER = Fetcher()  # one for all datasets of the process, as they share the client's session


class ShardStore:
    """Finds the shards of a dataset.

    Args:
        folder: the dataset folder; for a Hub dataset the snapshot with its small files.
        repo_id: id of a dataset on the Hub, whose shards come at the commit of the snapshot; None for a folder.
    """

    def __init__(self, folder: Path, repo_id: str | None = None):
        self._folder, self._repo_id = folder, repo_id
        self._expected: dict[str, Future[Path]] = {}

    def place(self, name: str) -> str:
        """What to call a shard in a message."""
        return f"{self._repo_id}/{name}" if self._repo_id else str(self._folder / name)

    def path(self, name: str) -> Path:
        """The local file of a shard; a shard on the Hub is fetched now unless the cache has it.

        Raises:
            EvaeError: the Hub does not have it, or cannot be reached.
        """
        if self._repo_id is None:
            return self._folder / name
        expected = self._expected.pop(name, None)
        if stored := self._cached(name):
            return stored
        if expected is None or expected.exception() is not None:  # what failed ahead of time is tried once more
            expected = _FETCHER.submit(partial(self._fetch, name))
        return expected.result()

    def expect(self, name: str | None) -> None:
        """Begin to fetch a shard that will be read soon; failures are told when it is read."""
        if self._repo_id is None or name is None or name in self._expected or self._cached(name):
            return
        self._expected[name] = _FETCHER.submit(partial(self._fetch, name))

    @property
    def _commit(self) -> str:
        return self._folder.resolve().name

    def _cached(self, name: str) -> Path | None:
        """The file of a shard that was fetched before, without a word to the Hub."""
        from huggingface_hub import try_to_load_from_cache  # slow to import, and not needed for folders

        found = try_to_load_from_cache(str(self._repo_id), name, revision=self._commit, repo_type="dataset")
        return Path(found) if isinstance(found, str) else None

    def _fetch(self, name: str) -> Path:
        from huggingface_hub import errors, hf_hub_download

        from evae.common.hub import explain_hub_errors

        with explain_hub_errors(str(self._repo_id), "dataset"):
            try:
                return Path(hf_hub_download(str(self._repo_id), name, repo_type="dataset", revision=self._commit))
            except errors.LocalEntryNotFoundError:
                raise
            except errors.EntryNotFoundError as error:
                raise EvaeError(f"{self.place(name)} is missing; push the dataset anew.") from error
