"""Published data sets: the files are fetched, then made into a dataset folder.

A file is fetched in ranges into `NAME.part`. When the connection breaks or the run is killed, the next one goes on
from there. Size and checksum must be the published ones. Where none were published, they must be those of the first
time, which are kept in `NAME.json`.
"""

import argparse
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from evae.common.cluster import on_dask
from evae.common.digests import file_digest
from evae.common.files import explain_disk_errors, put_in_place, write_json
from evae.common.progress import Bar, progress_bar
from evae.data.preparing.prepare import prepare_dataset
from evae.models.contract_evae import EvaeError

PIECE = 1 << 20
TIMEOUT = 60  # seconds without a byte
ATTEMPTS = 8  # in a row without a byte of progress
PAUSE = 5.0  # seconds after a failed attempt


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch.

    Attributes:
        name: what it is called here.
        url: where it is.
        size: in bytes; None where it is not known.
        md5: its published checksum; None where it is not known.
        cell_type: the cell type of all its cells; None where an obs column says it.
    """

    name: str
    url: str
    size: int | None = None
    md5: str | None = None
    cell_type: str | None = None


def fetch(file: RemoteFile, folder: Path, bar: Bar) -> Path:
    """The file in `folder`, fetched unless it is there and whole.

    Raises:
        EvaeError: it cannot be fetched, or is not what was published, or changed since it was first fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, note = folder / file.name, folder / f"{file.name}.json"
    learned: dict[str, Any] = json.loads(note.read_text()) if note.is_file() else {}
    size = file.size or learned.get("size")
    if target.is_file() and learned and target.stat().st_size == size:
        return target
    part = folder / f"{file.name}.part"
    if target.is_file():  # put there by hand: checked like one that was fetched
        target.rename(part)
    _fetch_rest(file, part, size, bar)
    found = {
        "url": file.url,
        "size": part.stat().st_size,
        "md5": file_digest(part, "md5"),
        "sha256": file_digest(part),
    }
    for key, wanted in (("size", size), ("md5", file.md5 or learned.get("md5"))):
        if wanted is not None and found[key] != wanted:
            part.unlink()
            raise EvaeError(f"{file.name} from {file.url} has the {key} {found[key]}, not {wanted}; run it again.")
    write_json(note, found)
    put_in_place(part, target)
    return target


def _fetch_rest(file: RemoteFile, part: Path, size: int | None, bar: Bar) -> None:
    """Append to `part` until the file is whole."""
    failures = 0
    while True:
        done = part.stat().st_size if part.is_file() else 0
        if size is not None and done >= size:
            return
        try:
            size = _append(file, part, done, bar)
            if size is None or part.stat().st_size >= size:
                return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing behind what is there
                return
            if error.code < 500 and error.code != 429:
                raise EvaeError(
                    f"{file.url} answers {error.code} ({error.reason}); fetch {part.stem} by hand."
                ) from error
        except (OSError, HTTPException):
            pass  # the network; try again
        grown = part.is_file() and part.stat().st_size > done
        failures = 0 if grown else failures + 1
        if failures == ATTEMPTS:
            raise EvaeError(f"{file.url} cannot be reached; check the network and run it again, it goes on from there.")
        if not grown:
            time.sleep(PAUSE)


def _append(file: RemoteFile, part: Path, done: int, bar: Bar) -> int | None:
    """Ask for what is missing and write it; returns the size of the whole file if the server tells it."""
    request = urllib.request.Request(file.url, headers={"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if done and answer.status != 206:  # a server without ranges sends everything again
            done = 0
        length = answer.headers.get("Content-Length")
        size = done + int(length) if length is not None else None
        advance = bar.start(f"fetching {file.name}", size)
        advance(done)
        then = "run it again, it goes on from there; or give another --downloads"
        with explain_disk_errors(str(part), then), part.open("ab" if done else "wb") as out:
            while piece := answer.read(PIECE):
                out.write(piece)
                advance(len(piece))
    return size


def prepare_published(
    files: list[RemoteFile], downloads: Path, out: Path, *, progress: bool = True, **options: Any
) -> Path:
    """Fetch the files and make a dataset folder of them.

    Args:
        files: what to fetch.
        downloads: where the files are kept.
        out: the dataset folder.
        progress: show progress bars.
        options: of `prepare_dataset`.
    """
    with progress_bar(progress, "B") as bar:
        paths = [fetch(file, downloads, bar) for file in files]
    kinds = [file.cell_type for file in files if file.cell_type is not None]
    return prepare_dataset(paths, out, cell_types=kinds or None, progress=progress, **options)


def published_main(
    files: list[RemoteFile], title: str, genes: str = "hvg:2000", argv: list[str] | None = None, **options: Any
) -> Path:
    """The command line that the scripts of the published sets share."""
    parser = argparse.ArgumentParser(description=title, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="dataset folder to make")
    parser.add_argument("--downloads", type=Path, default=Path("downloads"), help="where the files are kept")
    parser.add_argument("--genes", default=genes, help="all, hvg:N or a panel file (default: %(default)s)")
    parser.add_argument("--split", type=Path, help="what to hold out: a JSON file; nothing if left out")
    parser.add_argument("--dask", help="workers of Dask: local:4, or tcp://HOST:8786")
    args = parser.parse_args(argv)
    try:
        with on_dask(args.dask):
            return prepare_published(files, args.downloads, args.out, genes=args.genes, split=args.split, **options)
    except EvaeError as error:
        raise SystemExit(f"error: {error}") from None
