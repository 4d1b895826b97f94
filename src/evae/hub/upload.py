"""One folder, one commit: what goes to the Hub, checked for what must not go."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

from evae.common.hub import LOGIN, explain_hub_errors
from evae.models.contract_evae import EvaeError

TEXT = (".json", ".py", ".md", ".yaml")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")
LOCAL_PATH = re.compile(r"(?<![\w/.:])(?:/(?:home|Users|root|mnt|tmp|private|var)/[\w.-]+|[A-Za-z]:\\Users\\)")


@dataclass(frozen=True)
class Bundle:
    """What a repository will hold.

    Attributes:
        repo_id: where it goes.
        kind: "model", "dataset" or "space".
        files: path in the repository -> a local file, or the content itself.
        replaces: patterns of files that go from the repository if this bundle does not hold them, so that nothing
            of an earlier push is mixed with this one.
    """

    repo_id: str
    kind: str
    files: dict[str, Path | bytes]
    replaces: Sequence[str]

    def sizes(self) -> list[tuple[str, int]]:
        """(path in the repository, bytes) of every file, sorted."""
        return [(p, len(c) if isinstance(c, bytes) else c.stat().st_size) for p, c in sorted(self.files.items())]

    def check(self) -> None:
        """Raise `EvaeError` for a token or a path of this machine in any text file."""
        home = re.compile(re.escape(str(Path.home())) + r"\b")
        for path, content in self.files.items():
            if not path.endswith(TEXT):
                continue
            text = (content if isinstance(content, bytes) else content.read_bytes()).decode(errors="replace")
            if TOKEN.search(text):
                raise EvaeError(f"{path} holds what looks like a Hub token; remove it, and revoke the token.")
            found = LOCAL_PATH.search(text) or (home.search(text) if len(str(Path.home())) > 1 else None)
            if found:
                raise EvaeError(f"{path} holds a path of this machine ({found[0]}); remove it, then push again.")


def upload(bundle: Bundle, private: bool = False, message: str = "Upload with evae") -> str:
    """Create the repository if need be and put the bundle there in one commit.

    Args:
        bundle: what goes.
        private: make a new repository private; raises where it exists and is public.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        EvaeError: any failure of the Hub, with the fix.
    """
    if get_token() is None:
        raise EvaeError(f"pushing needs a login; {LOGIN}, with a token of role write.")
    api = HfApi()
    where: dict[str, Any] = {"repo_id": bundle.repo_id, "repo_type": bundle.kind}
    with explain_hub_errors(bundle.repo_id, bundle.kind, pushing=True):
        sdk = "gradio" if bundle.kind == "space" else None
        api.create_repo(**where, private=private or None, exist_ok=True, space_sdk=sdk)
        before = api.repo_info(**where)
        if private and not before.private:
            raise EvaeError(
                f"'{bundle.repo_id}' exists and is public; make it private in its settings, or name another."
            )
        present = api.list_repo_files(**where, revision=before.sha)
        gone = [p for p in present if p not in bundle.files and any(fnmatch(p, r) for r in bundle.replaces)]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path, content) for path, content in sorted(bundle.files.items())
        ]
        operations += [CommitOperationDelete(path) for path in gone]
        # `gone` holds for that parent only; where someone else commits in between, the Hub refuses this commit
        commit = api.create_commit(**where, operations=operations, commit_message=message, parent_commit=before.sha)
        return str(commit.commit_url)
