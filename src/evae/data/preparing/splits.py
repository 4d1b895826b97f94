"""Which cells are held out: a cross product of cell types and perturbations, chosen pairs, a random share, or none.

Everything outside the cross product is training data, the controls of the held-out cell type included.
These spellings are read:

    {"cell_type": ["hepg2"], "pert": ["ABCB7", ...]}
    {"labels": {"cell_line": ["hepg2"], "gene": ["ABCB7", ...]}, "genes": [...]}     the published split files
    "random:0.1"
    "unseen-cell-type:hepg2" and other short names, see `evae.data.preparing.regimes`
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evae.data.preparing.known_labels import Known
from evae.data.preparing.regimes import MIN_CELLS, hold_out, is_regime
from evae.data.preparing.shards import first_of_each
from evae.models.contract_evae import EvaeError, check_unique, look_up
from evae.models.treatments_evae import Treatment


@dataclass(frozen=True)
class Split:
    """A resolved split: what is tested, and what is neither tested nor trained on.

    Attributes:
        cell_types, perturbations: a cross product that is held out.
        fraction: a random share of the cells, in the place of that.
        pairs: (cell type, perturbation) pairs, in the place of that.
        key, values: an obs column, and its values whose perturbed cells are held out, in the place of that.
        left_out: pairs that would give the answer away, and so are dropped.
    """

    cell_types: tuple[str, ...] = ()
    perturbations: tuple[str, ...] = ()
    fraction: float = 0.0
    pairs: tuple[tuple[str, str], ...] = ()
    key: str = ""
    values: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What split.json holds: `cell_type` and `pert`, or `pairs`, `donors` or `random`; `left_out`; or nothing."""
        more = {"left_out": [list(pair) for pair in self.left_out]} if self.left_out else {}
        if self.cell_types:
            return {"cell_type": list(self.cell_types), "pert": list(self.perturbations), **more}
        if self.pairs:
            return {"pairs": [list(pair) for pair in self.pairs], **more}
        if self.key:
            return {"donors": {"key": self.key, "names": list(self.values)}}
        return {"random": self.fraction} if self.fraction else {}

    def held_out(
        self,
        cell_type_codes: np.ndarray,
        perturbation_codes: np.ndarray,
        cell_types: Sequence[str],
        perturbations: Sequence[str],
        seed: int,
    ) -> np.ndarray:
        """Boolean mask (cells,) of the held-out cells; the codes index the two vocabularies.

        Of a split by an obs column (`key`) all False: the column is not among the codes.
        """
        if self.cell_types:
            kinds = look_up(self.cell_types, cell_types, "cell type")
            given = look_up(self.perturbations, perturbations, "perturbation")
            return np.isin(cell_type_codes, kinds) & np.isin(perturbation_codes, given)
        if self.pairs:
            return _among(self.pairs, cell_type_codes, perturbation_codes, cell_types, perturbations)
        mask = np.zeros(len(cell_type_codes), dtype=bool)
        if self.fraction:
            rng = np.random.default_rng([seed, 1])
            mask[rng.permutation(len(mask))[: max(1, round(self.fraction * len(mask)))]] = True
            lost = ~np.isin(perturbation_codes, perturbation_codes[~mask])  # every perturbation keeps a cell to learn
            given_back = first_of_each(perturbation_codes, np.arange(len(mask)), lost)
            if len(given_back) < (~mask).sum():  # else the fraction is too large, which is refused
                mask[given_back] = False
        return mask

    def dropped(
        self,
        cell_type_codes: np.ndarray,
        perturbation_codes: np.ndarray,
        cell_types: Sequence[str],
        perturbations: Sequence[str],
    ) -> np.ndarray:
        """Boolean mask (cells,) of the cells that are neither trained on nor tested; the codes as in `held_out`."""
        return _among(self.left_out, cell_type_codes, perturbation_codes, cell_types, perturbations)


def _among(
    pairs: Sequence[tuple[str, str]],
    cell_type_codes: np.ndarray,
    perturbation_codes: np.ndarray,
    cell_types: Sequence[str],
    perturbations: Sequence[str],
) -> np.ndarray:
    kinds = look_up([c for c, _ in pairs], cell_types, "cell type")
    given = look_up([p for _, p in pairs], perturbations, "perturbation")
    wanted = np.zeros((len(cell_types), len(perturbations)), dtype=bool)
    wanted[kinds, given] = True
    return wanted[cell_type_codes, perturbation_codes]


def parse_split(
    split: str | Path | Mapping[str, Any] | None,
    *,
    cell_type_key: str,
    perturbation_key: str,
    cell_types: Sequence[str],
    perturbations: Sequence[str],
    control: str,
    cells: np.ndarray | None = None,
    seed: int = 0,
    treatments: Mapping[str, Treatment] | None = None,
) -> Split:
    """Read any spelling of a split and check it against the vocabularies.

    Args:
        split: None, "random:0.1", a short name, a JSON file, or its content.
        cell_type_key, perturbation_key: obs columns; the published form is matched by these names, else by
            which of its columns holds known cell types.
        cell_types, perturbations: the vocabularies of the data.
        control: name of the control, which cannot be held out.
        cells: number of cells of every pair, (cell types, perturbations), for short names; None takes all to occur.
        seed: of what a short name draws.
        treatments: of the perturbations, where their labels say more than a name.

    Raises:
        EvaeError: unreadable file, unknown form, unknown cell type or perturbation, the control held out.
    """
    if split is None:
        return Split()
    if isinstance(split, str) and split.startswith("random"):
        return Split(fraction=_fraction(split))
    if isinstance(split, str) and is_regime(split):
        there = np.full((len(cell_types), len(perturbations)), MIN_CELLS) if cells is None else cells
        return Split(**hold_out(split, Known(cell_types, perturbations, control, there, seed, treatments or {})))
    source = "the split"
    if not isinstance(split, Mapping):
        source = f"split file {split}"
        split = _read_json(Path(split))
    kinds, given = _columns(split, source, cell_type_key, perturbation_key, cell_types, perturbations)
    if not kinds or not given:
        raise EvaeError(f"{source} holds nothing out; name at least one cell type and one perturbation.")
    for names, known, kind in ((kinds, cell_types, "cell type"), (given, perturbations, "perturbation")):
        try:
            look_up(names, known, kind)
            check_unique(names, kind)
        except EvaeError as error:
            raise EvaeError(f"{source}: {error}") from None
    if control in given:
        raise EvaeError(f"{source} holds out the control '{control}'; take it out, controls stay in training.")
    return Split(cell_types=tuple(kinds), perturbations=tuple(given))


def _fraction(text: str) -> float:
    try:
        fraction = float(text.partition(":")[2])
    except ValueError:
        fraction = -1.0
    if not 0 < fraction < 1:
        raise EvaeError(f"'{text}' is not a split; write random:0.1 to hold out a random tenth of the cells.")
    return fraction


def _read_json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise EvaeError(f"no such split file: {path}")
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise EvaeError(f"split file {path} is not JSON ({error}).") from None
    if not isinstance(content, Mapping):
        raise EvaeError(f'split file {path} must hold {{"cell_type": [...], "pert": [...]}}.')
    return content


def _columns(
    content: Mapping[str, Any],
    source: str,
    cell_type_key: str,
    perturbation_key: str,
    cell_types: Sequence[str],
    perturbations: Sequence[str],
) -> tuple[list[str], list[str]]:
    """The held-out cell types and perturbations of either written form."""
    form = EvaeError(
        f'{source} must hold {{"cell_type": [...], "pert": [...]}} or {{"labels": {{two columns}}}}; '
        f"it has the keys {', '.join(map(repr, content)) or 'none'}."
    )
    if "labels" not in content:
        if set(content) != {"cell_type", "pert"}:
            raise form
        return _names(content["cell_type"], source), _names(content["pert"], source)
    labels = content["labels"]
    if not isinstance(labels, Mapping) or len(labels) != 2:
        raise form
    columns = {str(column): _names(names, source) for column, names in labels.items()}
    if set(columns) == {cell_type_key, perturbation_key}:
        return columns[cell_type_key], columns[perturbation_key]
    (_, first), (_, second) = columns.items()

    def matched(kinds: list[str], given: list[str]) -> int:
        return len(set(kinds) & set(cell_types)) + len(set(given) & set(perturbations))

    return (first, second) if matched(first, second) >= matched(second, first) else (second, first)


def _names(value: Any, source: str) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise EvaeError(f'{source} must list names, as in ["STAT1", "JAK2"]; it holds {value!r}.')
    return [str(v) for v in value]
