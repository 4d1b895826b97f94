"""What stands both among the held-out cells and in training, and so makes a test easier than it says.

Cells are told by their counts over the panel and by their names, targets by the names of perturbations.
"""

import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from evae.common.numbers import counted
from evae.data.format import AnyDataset, Dataset, DatasetInfo
from evae.data.rows import RowFormat
from evae.models.contract_evae import parts_of

LEAST_EXPRESSED = 10  # genes of a cell: with fewer, two cells may well agree by chance
OF_A_GUIDE = re.compile(r"[-_.](sg|g|guide)[-_.]?\d+$")  # STAT1_g2 is a guide of STAT1


def leakage(dataset: AnyDataset) -> list[str]:
    """Sentences that name the cells and targets on both sides; an empty list where there are none.

    Args:
        dataset: a folder, a Hub id or an open `Dataset`; its cells are read once.
    """
    dataset = Dataset.open(dataset)
    if not dataset.info.n_cells["test"]:
        return []
    counts: dict[int, str] = {}
    names: set[str] = set()
    for name, content in _cells(dataset, "test"):
        names.add(name)
        if content:
            counts[content] = name
    same_counts, same_name = [], []
    for split in ("train", "validation"):
        for name, content in _cells(dataset, split):
            if content in counts:
                same_counts.append(f"{name} and {counts[content]}" if counts[content] != name else name)
            elif name in names:
                same_name.append(name)
    found = []
    if same_counts:
        found.append(f"{counted(same_counts, 'cell')} of training have exactly the counts of a held-out cell")
    if same_name:
        found.append(f"{counted(same_name, 'cell')} of training have the name (barcode) of a held-out cell")
    return found + _targets(dataset.info)


def _cells(dataset: Dataset, split: str) -> Iterator[tuple[str, int]]:
    """Name and hash of the counts of every cell; the hash is 0 for cells with too few genes to tell."""
    rows = RowFormat.of(dataset.info)
    columns = ["cell_id", *rows.columns]
    for shard, _ in dataset.info.shards(split):
        with pq.ParquetFile(dataset.store.path(shard)) as file:
            for batch in file.iter_batches(columns=columns):
                least = LEAST_EXPRESSED * (1 if rows.steps else rows.gene_dtype.itemsize)
                yield from _hashed(batch, least, [name for name in columns if batch[name].type == pa.binary()])


def _hashed(batch: pa.RecordBatch, least_bytes: int, content: list[str]) -> Iterator[tuple[str, int]]:
    columns = (batch.column(name).to_pylist() for name in ("cell_id", *content))
    for name, *found in zip(*columns, strict=True):
        yield str(name), hash(tuple(found)) if len(found[0]) >= least_bytes else 0


def _targets(info: DatasetInfo) -> list[str]:
    """Perturbations that training knows by another name, or as a part of a combination."""
    counts = info.statistics["cell_counts"]
    tested, trained = (
        {p for row in counts.get(split, {}).values() for p in row} - {info.control} for split in ("test", "train")
    )
    by_target: dict[str, str] = {}
    for name in sorted(trained):
        for part in {*parts_of(name, set(info.perturbations), info.control), name}:
            by_target.setdefault(_target(part), name)
    known = [f"{name} by {by_target[_target(name)]}" for name in sorted(tested - trained) if _target(name) in by_target]
    return [f"{counted(known, 'held-out target')} known in training"] if known else []


def _target(name: str) -> str:
    return OF_A_GUIDE.sub("", name.casefold())
