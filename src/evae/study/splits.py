"""The splits of a study: what is held out in turn, each as a dataset folder that does not know it in training.

    prepare:                                  # what `evae prepare` is told, but for the split
      files: kang_ifnb.h5ad
      control: ctrl
      genes: hvg:1000
    splits:
      - leave-one-cell-type-out:CD14 Mono,B   # a split for each of these cell types, named after it
      - k-fold:5                              # five splits
      - unseen-perturbation:0.2               # one, as `evae prepare --split` reads it

or with names:

    splits:
      interferon in B: {cell_type: [B], pert: [IFNb]}
      from a file: split.json
      elsewhere: {dataset: data/other}        # a dataset folder or Hub id that holds out what it holds out

A dataset is prepared once for each split, in the study's folder, so that genes, statistics, tokenizer and prior
never see what is held out. One that is there already, of the same files and options, is used again.
"""

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from evae.common.files import lock
from evae.data.preparing.automatic import read_named_labels
from evae.data.preparing.known_labels import Known
from evae.data.preparing.prepare import prepare_dataset
from evae.data.preparing.regimes import expand, is_regime
from evae.data.preparing.treatments import TreatmentKeys
from evae.models.contract_evae import EvaeError, near_matches

NEEDED = ("files", "control")
KEYS = {"perturbation_key": "perturbation", "cell_type_key": "cell_type"}
NOT_OF_A_STUDY = ("out", "split", "progress", "where", "cell_types")


def named_splits(splits: Any) -> dict[str, Any]:
    """The splits of a YAML file as name -> split; a list names each by its own text.

    Raises:
        EvaeError: neither names nor a list of short names.
    """
    if isinstance(splits, str):
        splits = [splits]
    if isinstance(splits, list) and all(isinstance(split, str) for split in splits):
        splits = {split: split for split in splits}
    if not isinstance(splits, dict) or not all(isinstance(s, str | dict) and s for s in splits.values()):
        raise EvaeError("splits must hold lines `name: split`, or a list such as [unseen-cell-type:NK, k-fold:5].")
    return {str(name): split for name, split in splits.items()}


def split_datasets(
    splits: dict[str, Any], prepare: dict[str, Any], out: Path, tell: Callable[[str], object]
) -> dict[str, str]:
    """The dataset of every split, name -> folder or Hub id; makes those that are missing.

    Args:
        splits: from `named_splits`.
        prepare: the arguments of `prepare_dataset` but for the split and the place.
        out: the study's folder; datasets go to `datasets/` in it.
        tell: is told what is being made.

    Raises:
        EvaeError: a split or an option that cannot be read, or files that cannot be prepared.
    """
    to_make = {name: split for name, split in splits.items() if not _is_dataset(split)}
    options = _checked(prepare) if to_make else {}
    known = _known(options) if any(isinstance(s, str) and is_regime(s) for s in to_make.values()) else None
    found: dict[str, str] = {}
    for name, split in splits.items():
        if _is_dataset(split):
            parts = {name: split["dataset"]}
        else:
            forms = expand(split, known) if known and isinstance(split, str) and is_regime(split) else {name: split}
            alone = len(forms) == 1 and next(iter(forms.values())) == split
            called = {
                name if alone else own if name == split else f"{name}: {own}": form for own, form in forms.items()
            }
            parts = {own: str(_dataset(own, form, options, out, tell)) for own, form in called.items()}
        for own, dataset in parts.items():
            if own in found:
                raise EvaeError(f"two splits are called '{own}'; give them names, as `name: split` under splits.")
            found[own] = dataset
    return found


def as_file_name(text: str) -> str:
    """A text with all but letters and digits replaced."""
    return "".join(c if c.isalnum() else "_" for c in text)


def _is_dataset(split: Any) -> bool:
    return isinstance(split, dict) and set(split) == {"dataset"}


def _checked(prepare: dict[str, Any]) -> dict[str, Any]:
    known = [name for name in inspect.signature(prepare_dataset).parameters if name not in NOT_OF_A_STUDY]
    for key in prepare:
        if key not in known:
            raise EvaeError(f"unknown key '{key}' in prepare. {near_matches(str(key), known)}")
    for key in NEEDED:
        if not prepare.get(key):
            raise EvaeError(
                f"prepare.{key} is not set; splits are made of h5ad files: add it to the study's YAML file."
            )
    files = prepare["files"]
    return {**KEYS, **prepare, "files": [files] if isinstance(files, str) else list(files)}


def _known(options: dict[str, Any]) -> Known:
    """The labels of all cells."""
    files = [Path(path) for path in options["files"]]
    apart = {f.name: options[f.name] for f in fields(TreatmentKeys) if f.name in options}
    given = {name: options.get(name) for name in ("layer", *KEYS, "control", "obs")}
    named, cell_type, perturbation = read_named_labels(files, **given, keys=TreatmentKeys(**apart))
    table = pd.crosstab(cell_type.astype(str), perturbation.astype(str))
    if named.control not in table:
        near = near_matches(options["control"], list(table))
        raise EvaeError(f"no cell has the control label '{options['control']}'. {near}")
    seed = int(options.get("seed", 0))
    return Known(list(table.index), list(table), named.control, table.to_numpy(), seed, named.treatments)


def _dataset(name: str, split: Any, options: dict[str, Any], out: Path, tell: Callable[[str], object]) -> Path:
    """The folder of a split, made unless it is there."""
    said = Path(split).read_text() if isinstance(split, str) and Path(split).is_file() else split
    text = json.dumps([said, {**options, "files": [_identity(Path(f)) for f in options["files"]]}], sort_keys=True)
    folder = out / "datasets" / f"{as_file_name(name)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    with _turn(folder.parent):
        if (folder / "dataset.json").is_file():
            return folder
        tell(f"preparing {folder.name}")
        given = {key: value for key, value in options.items() if key != "files"}
        return prepare_dataset(options["files"], folder, split=split, progress=False, **given)


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """One process at a time; others of the same study wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        while not lock(file):
            time.sleep(0.5)
        yield


def _identity(path: Path) -> list[Any]:
    """What tells whether a file is still the same; a file that is missing is named when it is read."""
    state = path.stat() if path.is_file() else None
    return [str(path.resolve()), *([state.st_size, state.st_mtime_ns] if state else [])]
