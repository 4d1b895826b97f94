"""Feature tables: a vector for every perturbation, so that those that no cell has can be asked for.

A table holds vectors, or, for drugs, their structures as SMILES, of which fingerprints are made.
"""

import csv
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from evae.common.extras import require
from evae.common.messages import first_line, first_of, number_of
from evae.models.contract_evae import EvaeError

SMILES = "smiles"  # name of the column of structures, in any case
BITS, RADIUS = 2_048, 2  # of Morgan fingerprints: ECFP4
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt")
NAMED = {".npz": "npz", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}


class FeatureTable(NamedTuple):
    """A feature table.

    Attributes:
        names: of the perturbations.
        vectors: float32 (names, features).
        source: what the vectors are, in words.
    """

    names: list[str]
    vectors: np.ndarray
    source: str

    @classmethod
    def without_any(cls) -> Self:
        """That of a prior without features."""
        return cls([], np.zeros((0, 0), dtype=np.float32), "")


def read_feature_table(path: Path) -> FeatureTable:
    """Read a feature table.

    Args:
        path: npz with `genes` (names), `emb` (vectors) and, if wanted, `source` (what they are, in words); or csv, tsv
            or parquet whose first column is the names. Where a column is called `smiles`, its structures become Morgan
            fingerprints (radius 2, 2,048 bits, by RDKit, extra `drugs`; Rogers and Hahn 2010, doi:10.1021/ci100050t)
            and other columns are left out.

    Raises:
        EvaeError: no such file, another format, names that stand twice, values that are not numbers, a structure that
            cannot be read.
    """
    if not path.is_file():
        raise EvaeError(f"the feature table {path} does not exist; give an npz, csv, tsv or parquet file.")
    if path.suffix in PICKLES:
        raise EvaeError(
            f"the feature table {path} is a pickle, which can run code when it is read. Where you trust it, convert it "
            "once to an npz file with numpy.savez: the names as the array genes, the vectors as emb. " + _mend(path)
        )
    if path.suffix not in NAMED:
        raise EvaeError(f"the feature table {path} is no npz, csv, tsv or parquet file; convert it.")
    try:
        names, values, source = _read(path)
        vectors = np.asarray(values, dtype=np.float32)
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        if isinstance(error, EvaeError):
            raise
        reason = first_line(error)
        raise EvaeError(f"the feature table {path} cannot be read ({reason}); fix the file.") from None
    if vectors.ndim != 2 or len(names) != len(vectors) or not vectors.size or not np.isfinite(vectors).all():
        raise EvaeError(f"the feature table {path} must hold one row of finite numbers for every name; fix the file.")
    if len(set(names)) != len(names):
        raise EvaeError(f"the feature table {path} names something twice; make its names unique.")
    return FeatureTable(names, vectors, f"{path.name}: {source}")


def _mend(path: Path) -> str:
    """How a pickle is read that may be trusted: by what is mostly kept in files with this ending."""
    if path.suffix in (".pkl", ".pickle"):  # GenePT, scELMo: a dictionary of lists
        return "Of d, a dictionary of vectors by name as pickle loads it, they are list(d) and list(d.values())."
    return (  # ESM2 as STATE has it: a dictionary of tensors; scGPT: weights, whose names stand in a file of their own
        "Of d, as torch.load reads it, they are list(d) and torch.stack(list(d.values())); of "
        "scGPT's weights the keys of vocab.json in the order of their numbers, and d['encoder.embedding.weight']."
    )


def _read(path: Path) -> tuple[list[str], Sequence[Sequence[float]] | np.ndarray, str]:
    if path.suffix == ".npz":
        return _read_npz(path)
    header, columns = _read_parquet(path) if path.suffix == ".parquet" else _read_text(path)
    names = [str(name) for name in columns[0]]
    drawn = [i for i, name in enumerate(header) if name.strip().lower() == SMILES]
    if drawn:
        vectors = fingerprints(names, [str(text) for text in columns[drawn[0]]], path)
        return names, vectors, f"Morgan fingerprints of radius {RADIUS}, {BITS} bits"
    vectors = np.array([[float(value) for value in column] for column in columns[1:]], dtype=np.float32).T
    return names, vectors, number_of(len(columns) - 1, "feature")


def _read_npz(path: Path) -> tuple[list[str], np.ndarray, str]:
    with zipfile.ZipFile(path) as archive:  # numpy's own reader would unpickle
        arrays = {}
        for name in ("genes", "emb", "source"):
            if name != "source" or "source.npy" in archive.namelist():
                with archive.open(f"{name}.npy") as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    vectors = arrays["emb"]
    source = str(arrays.get("source", number_of(vectors.shape[-1], "feature")))
    return [str(name) for name in arrays["genes"]], vectors, source


def _read_text(path: Path) -> tuple[list[str], list[tuple[str, ...]]]:
    with path.open(newline="") as stream:
        header, *rows = csv.reader(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
    return header, list(zip(*rows, strict=True))


def _read_parquet(path: Path) -> tuple[list[str], list[list[Any]]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return table.column_names, [column.to_pylist() for column in table.columns]


def fingerprints(names: Sequence[str], structures: Sequence[str], path: Path) -> np.ndarray:
    """Morgan fingerprints of molecules, 0 or 1, float32 (molecules, bits).

    Args:
        names: of the molecules, for messages.
        structures: SMILES of each.
        path: where they stand, for messages.

    Raises:
        EvaeError: RDKit is not installed, or structures that it cannot read.
    """
    require("rdkit", f"the column {SMILES} of {path}", extra="drugs")
    from rdkit import Chem, RDLogger
    from rdkit.Chem import rdFingerprintGenerator

    RDLogger.DisableLog("rdApp.error")  # type: ignore[attr-defined]  # it prints what the message below says
    with warnings.catch_warnings():
        molecules = [Chem.MolFromSmiles(text) if text.strip() else None for text in structures]
    RDLogger.EnableLog("rdApp.error")  # type: ignore[attr-defined]
    unread = [name for name, molecule in zip(names, molecules, strict=True) if molecule is None]
    if unread:
        raise EvaeError(
            f"{number_of(len(unread), 'structure')} of {path} cannot be read by RDKit as SMILES: "
            f"{first_of(unread, 5)}; mend these rows, or leave them out."
        )
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)
    return np.stack([generator.GetFingerprintAsNumPy(molecule) for molecule in molecules]).astype(np.float32)
