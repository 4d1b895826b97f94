"""Where the Parquet shards of a dataset lie: in its folder, or on the Hub, fetched one by one as they are read."""

import threading
from pathlib import Path

from evae.common.hub import explain_hub_errors
from evae.models.contract_evae import EvaeError


class ShardStore:
    """Finds the shards of a dataset.

    Args:
        folder: the dataset folder; for a Hub dataset the snapshot with its small files.
        repo_id: id of a dataset on the Hub, whose shards come at the commit of the snapshot; None for a folder.
    """

    def __init__(self, folder: Path, repo_id: str | None = None):
        self._folder, self._repo_id = folder, repo_id

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
        from huggingface_hub import errors, hf_hub_download  # slow to import, and not needed for folders

        with explain_hub_errors(self._repo_id, "dataset"):
            try:
                return Path(
                    hf_hub_download(self._repo_id, name, repo_type="dataset", revision=self._folder.resolve().name)
                )
            except errors.LocalEntryNotFoundError:
                raise
            except errors.EntryNotFoundError as error:
                raise EvaeError(f"{self.place(name)} is missing; push the dataset anew.") from error

    def expect(self, name: str | None) -> None:
        """Begin to fetch a shard that will be read soon; failures are told when it is read."""
        if self._repo_id is not None and name is not None:
            threading.Thread(target=self._try, args=(name,), daemon=True, name="evae-fetch").start()

    def _try(self, name: str) -> None:
        try:
            self.path(name)
        except Exception:
            return
