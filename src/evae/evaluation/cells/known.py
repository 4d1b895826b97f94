"""Cells of a file that an earlier evaluation has read: their values are read again only when a metric asks for them.

What is kept of them, by a digest of the file: the scale, a digest of the values, and the cells' totals.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from evae.common.digests import file_digest
from evae.data import reading
from evae.evaluation.cells.inputs import Progress, Source, open_source
from evae.evaluation.cells.kept import keep, load_kept
from evae.evaluation.cells.normalised import Cells, LateRows, Rows
from evae.evaluation.cells.scale import Scale
from evae.models.genes_evae import GeneColumns


def known_cells(
    source: Source, genes: GeneColumns, wanted: Sequence[np.ndarray], progress: Progress, folder: Path | None
) -> tuple[Source, list[Cells]]:
    """Cells of a source, and the source with its scale settled.

    Args:
        source: where they are; only what stands in a file is kept.
        genes: the panel.
        wanted: row indices, one array for each of the sets of cells that are asked for.
        progress: shows how far the reading is.
        folder: where to look for what is known and to keep it; None keeps nothing.
    """
    if folder is None or source.opened_with is None:
        found = [source.cells(genes, rows, progress) for rows in wanted]
        return source.settled(), found
    path = folder / f"{_key(source, genes, wanted)}-cells.safetensors"
    known = load_kept(path)
    if known is None:
        found = [source.cells(genes, rows, progress) for rows in wanted]
        source = source.settled()
        facts = {"scale": asdict(source.scale), "n_empty": [cells.n_empty for cells in found]}
        arrays = {f"content{i}": np.frombuffer(cells.content(), np.uint8) for i, cells in enumerate(found)}
        arrays |= {f"totals{i}": cells.totals for i, cells in enumerate(found) if cells.totals is not None}
        keep(path, arrays, {"facts": json.dumps(facts)})
        return source, found
    arrays, facts = known[0], json.loads(known[1]["facts"])
    found = []
    for i, (rows, n_empty) in enumerate(zip(wanted, facts["n_empty"], strict=True)):
        late = LateRows((len(rows), len(genes)), arrays[f"content{i}"].tobytes(), partial(_read, source, genes, rows))
        labels = source.perturbation[rows], source.cell_type[rows]
        names = np.asarray(genes.names, dtype=object)
        found.append(Cells(late, *labels, names, n_empty, arrays.get(f"totals{i}")))
    return replace(source, scale=Scale(**facts["scale"])), found


def _read(source: Source, genes: GeneColumns, rows: np.ndarray) -> Rows:
    assert source.opened_with is not None
    with closing(open_source(*source.opened_with)) as again:
        return again.cells(genes, rows).matrix


def _key(source: Source, genes: GeneColumns, wanted: Sequence[np.ndarray]) -> str:
    assert source.opened_with is not None
    sha = hashlib.sha256(_code().encode())
    columns = source.columns(genes)
    stated = json.dumps([file_digest(Path(source.opened_with[0])), asdict(source.scale), genes.names, len(wanted)])
    sha.update(stated.encode())
    for numbers in wanted if columns is None else (columns, *wanted):
        sha.update(len(numbers).to_bytes(8, "little") + numbers.astype(np.int64).tobytes())
    return sha.hexdigest()


@cache
def _code() -> str:
    """A digest of the code that reads cells."""
    return code_digest(Path(__file__).parent, *map(Path, reading.__path__))


def code_digest(*rooms: Path) -> str:
    """A digest of the Python files in some folders."""
    sha = hashlib.sha256()
    for room in rooms:
        for file in sorted(room.glob("*.py")):
            sha.update(file.read_bytes())
    return sha.hexdigest()
