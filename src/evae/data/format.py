"""What a dataset folder is: where preparing, which writes one, and streaming, which reads it, meet.

dataset.json                  sizes, widths of the stored numbers, statistics of the training cells, shards
split.json                    what is held out
genes.parquet                 the gene panel: symbol, ensembl_id
perturbations.parquet, cell_types.parquet      the vocabularies: name
treatments.parquet            where names say more: name, agent, kind, dose, dose_unit, time (hours), of single ones
data/train-00000-of-00008.parquet, ...         the cells, one a row; see `evae.data.rows`
README.md                     the card by which HF `datasets` finds the shards
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, Union

import pyarrow as pa

from evae.common.messages import number_of
from evae.data.store import ShardStore, resolve_dataset
from evae.models.contract_evae import EvaeError, near_matches
from evae.models.treatments_evae import Treatment

FORMAT_VERSION = 2  # of new datasets; 1 stored gene indices, as `evae.data.rows` says
SPLITS = ("train", "validation", "test")
TREATMENTS = "treatments.parquet"
PANEL_KEY = b"evae_panel"  # in a shard's schema: the digest of the gene panel that its gene indices count in

Pair: TypeAlias = tuple[str, str]  # (cell type, perturbation)


def panel_digest(genes: Sequence[str]) -> str:
    """A short digest of the genes of a panel, in their order."""
    return hashlib.sha256("\n".join(genes).encode()).hexdigest()[:16]


def treatment_table(treatments: Mapping[str, Treatment]) -> pa.Table:
    """The table of treatments: what each label says, None where it says nothing of it."""
    types = {"agent": pa.string(), "kind": pa.string(), "dose": pa.float64(), "dose_unit": pa.string()}
    columns: dict[str, pa.Array] = {"name": pa.array(list(treatments), pa.string())}
    for name, kind in (types | {"time": pa.float64()}).items():
        columns[name] = pa.array([getattr(t, name) or None for t in treatments.values()], kind)
    return pa.table(columns)


def _read_treatments(path: Path) -> dict[str, Treatment]:
    if not path.is_file():
        return {}
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pylist()
    texts = ("agent", "kind", "dose_unit")
    return {r["name"]: Treatment(**{k: r[k] or "" for k in texts}, dose=r["dose"], time=r["time"]) for r in rows}


def shard_name(split: str, number: int, of: int) -> str:
    """The place of a shard in a dataset folder."""
    return f"data/{split}-{number:05d}-of-{of:05d}.parquet"


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset folder says about itself.

    Attributes:
        genes: symbols of the gene panel, in the order of the gene indices.
        ensembl_ids: their Ensembl ids, "" where unknown.
        perturbations: the vocabulary in the order of `perturbation_ids`; the control is the first.
        cell_types: the vocabulary in the order of `cell_type_ids`.
        control: name of the control.
        statistics: the content of dataset.json, among it `library_size_quantiles` (101 quantiles of the total
            counts over the panel, training cells), `median_library_size`, `max_count`, `nonzero_fraction`,
            `cell_counts[split][cell_type][perturbation]`, `dropped_cells`, `shards`, `sources`, and `batches`, the
            vocabulary of experimental batches, where it has any.
        split: what is held out: {"cell_type": [...], "pert": [...]}, {"random": 0.1} or {}.
        n_cells: number of cells of each split.
        treatments: label -> treatment, of the perturbations and parts whose label says more than a name.
    """

    genes: list[str]
    ensembl_ids: list[str]
    perturbations: list[str]
    cell_types: list[str]
    control: str
    statistics: dict[str, Any]
    split: dict[str, Any]
    n_cells: dict[str, int]
    treatments: dict[str, Treatment] = field(default_factory=dict)

    @classmethod
    def load(cls, path_or_id: str | Path) -> "DatasetInfo":
        """Read the small files of a dataset folder or Hub dataset.

        Raises:
            EvaeError: not a dataset, a file missing or unreadable, or a newer format than this version reads.
        """
        return Dataset.open(path_or_id).info

    @classmethod
    def read(cls, folder: Path, name: str) -> "DatasetInfo":
        """Read the small files of a folder; `name` is what to call the dataset in a message."""
        import pyarrow.parquet as pq

        try:
            meta = json.loads((folder / "dataset.json").read_text())
            split = json.loads((folder / "split.json").read_text())
            genes = pq.read_table(folder / "genes.parquet").to_pydict()
            perturbations = pq.read_table(folder / "perturbations.parquet").to_pydict()["name"]
            cell_types = pq.read_table(folder / "cell_types.parquet").to_pydict()["name"]
            treatments = _read_treatments(folder / TREATMENTS)
        except (OSError, ValueError, KeyError) as error:
            raise EvaeError(f"the dataset {name} is incomplete ({error}); make it anew.") from error
        if meta.get("format_version") not in range(1, FORMAT_VERSION + 1):
            raise EvaeError(
                f"the dataset {name} has format {meta.get('format_version')}, this evae reads 1 to "
                f"{FORMAT_VERSION}; make it anew, or update evae."
            )
        return cls(
            genes=genes["symbol"],
            ensembl_ids=genes["ensembl_id"],
            perturbations=perturbations,
            cell_types=cell_types,
            control=meta["control"],
            statistics=meta,
            split=split,
            n_cells=meta["n_cells"],
            treatments=treatments,
        )

    def held_out_pairs(self) -> list[Pair]:
        """The pairs that are held out by name and have cells; none of a random split."""
        if not {"cell_type", "pairs", "donors"} & set(self.split):
            return []
        held_out = self.statistics["cell_counts"]["test"]
        return [(cell_type, perturbation) for cell_type, row in held_out.items() for perturbation in row]

    def shards(self, split: str) -> list[tuple[str, int]]:
        """The shards of a split as (place in the folder, number of cells), in their order."""
        shards = self.statistics["shards"]
        return [(s["path"], s["rows"]) for s in shards if s["path"].startswith(f"data/{split}-")]

    def shard_of(self, split: str, row: int) -> tuple[str, int]:
        """The shard that holds row number `row` of a split, and the row in it."""
        for shard, rows in self.shards(split):
            if row < rows:
                return shard, row
            row -= rows
        raise IndexError(f"the split {split} has {number_of(self.n_cells[split], 'row')}")

    def summary(self) -> str:
        """A few lines for a person: sizes, splits, what is held out, what was dropped."""
        sizes = ", ".join(f"{n:,} {name}" for name, n in self.n_cells.items())
        dropped = self.statistics["dropped_cells"]
        coverage = min(s["panel_coverage"] for s in self.statistics["sources"])
        return (
            f"{number_of(sum(self.n_cells.values()), 'cell')} ({sizes}), {number_of(len(self.genes), 'gene')} (panel "
            f"coverage {coverage:.0%}), {number_of(len(self.perturbations) - 1, 'perturbation')} and the control "
            f"'{self.control}', {number_of(len(self.cell_types), 'cell type')}; "
            f"{number_of(len(self.held_out_pairs()), '(cell type, perturbation) pair')} held out; "
            f"{number_of(dropped, 'cell')} dropped for having no count over the panel."
        )


@dataclass(frozen=True)
class Dataset:
    """A dataset that was found, once: what needs it is handed this, and asks neither disk nor Hub again where it is.

    Attributes:
        name: the folder or Hub id, as it was given; what messages call it.
        folder: the local folder; of a Hub dataset the snapshot with its small files.
        info: what it says about itself.
        store: where its shards lie; those of a Hub dataset come when they are first read.
    """

    name: str
    folder: Path
    info: DatasetInfo
    store: ShardStore

    @classmethod
    def open(cls, place: Union[str, Path, "Dataset"]) -> "Dataset":
        """Find a dataset and read its small files.

        Args:
            place: a folder made by `evae prepare`, or a Hub id; of a Hub dataset, the commit of this moment stays. A
                dataset that is open already is given back.

        Raises:
            EvaeError: not a dataset, a file missing or unreadable, or another format than this version reads.
        """
        if isinstance(place, Dataset):
            return place
        folder = resolve_dataset(place)
        repo_id = None if Path(place).is_dir() else str(place)
        return cls(str(place), folder, DatasetInfo.read(folder, str(place)), ShardStore(folder, repo_id))

    def cells_of(self, split: str) -> int:
        """The number of cells of a split.

        Raises:
            EvaeError: no such split, or no cells in it.
        """
        if split not in self.info.n_cells:
            raise EvaeError(f"no split '{split}'. {near_matches(split, list(self.info.n_cells))}")
        if not self.info.n_cells[split]:
            raise EvaeError(f"the split '{split}' of {self.name} holds no cells; prepare it with a split.")
        return self.info.n_cells[split]

    def __str__(self) -> str:
        return self.name


AnyDataset: TypeAlias = str | Path | Dataset  # what every function that reads a dataset takes
