"""Labels of cells that say more than a name: agent, kind, dose and time, from columns or from combined labels.

With keys, the columns of the dose, the time and the kind go with the column of the perturbation. With `parse_labels`,
the labels themselves are read, as `DrugA_10uM_24h`, by the rule of `readings` in `evae.models.treatments_evae`. Either
way a cell gets the canonical label of its treatment. A control keeps the control's label, whatever its dose and time;
cells of dose 0 are controls. Of a combination each part has its own dose (`10+1`), also none (`10+`), or all have the
same; a part of dose 0 is left out of it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from evae.common.messages import first_of, number_of
from evae.data.reading.file_counts import FileCounts
from evae.models.contract_evae import EvaeError, near_matches, parts_of
from evae.models.treatments_evae import (
    FACTORS,
    Treatment,
    as_dose,
    as_hours,
    kind_of,
    read_amount,
    readings,
    unit_of,
)

SIGN = "+"  # between the parts of a combination
UNIT_COLUMNS = ("dose_unit", "dose_units", "dose_value_unit")
TIME_UNIT_COLUMNS = ("time_unit", "time_units")


@dataclass(frozen=True)
class TreatmentKeys:
    """What tells treatments apart; see `prepare_dataset`."""

    dose_key: str | None = None
    dose_unit: str | None = None
    time_key: str | None = None
    time_unit: str | None = None
    kind_key: str | None = None
    parse_labels: bool = False

    def __post_init__(self) -> None:
        if self.parse_labels and (self.dose_key or self.time_key or self.kind_key):
            raise EvaeError("parse_labels reads dose, time and kind from the labels; leave their columns out, or it.")
        for unit, key in (("dose_unit", "dose_key"), ("time_unit", "time_key")):
            if getattr(self, unit) and not getattr(self, key):
                raise EvaeError(f"{unit} is that of a column; name it as {key}.")

    @property
    def used(self) -> dict[str, Any]:
        """Those that are set; empty where a perturbation is a name alone."""
        return {name: value for name, value in asdict(self).items() if value}


NO_KEYS = TreatmentKeys()


def agent_of(label: str) -> str:
    """The agent of a combined label."""
    return _last(label).agent


def _last(label: str) -> Treatment:
    """What a label says where as much of its end as possible is read."""
    return list(readings(label))[-1]


def relabel(
    sources: Sequence[FileCounts], key: str, control: str, keys: TreatmentKeys
) -> tuple[dict[str, Treatment], list[str]]:
    """Give the cells of all files the labels of their treatments, in the place of the labels of column `key`.

    Args:
        sources: the files; changed.
        key: their obs column of perturbations.
        control: label of unperturbed cells.
        keys: what tells treatments apart.

    Returns:
        Label -> treatment, for every part that says more than a name, and sentences on what was read.

    Raises:
        EvaeError: values that are no dose, time or unit, or labels of which none is read.
    """
    columns = _columns(sources, key, keys)
    names = {name for source in sources for name in source.labels(key, gaps=True)[1]}
    read = _Reader(names, control, keys)
    for source in sources:
        found = [source.labels(column, gaps=True) for column in columns.values()]
        code, rows = distinct_rows(found)
        labels = [read(dict(zip(columns, row, strict=True))) for row in rows]
        read.count(np.bincount(code, minlength=len(labels)))
        own_names = sorted({label for label in labels if label is not None})
        place = {label: i for i, label in enumerate(own_names)}
        source.set_labels(key, np.array([-1 if x is None else place[x] for x in labels], np.int32)[code], own_names)
    return read.treatments, read.notes()


def _columns(sources: Sequence[FileCounts], key: str, keys: TreatmentKeys) -> dict[str, str]:
    """What is read -> its obs column; units that are no column are not among them."""
    columns = {"name": key}
    shared = [column for column in sources[0].obs if all(column in source.obs for source in sources)]
    named = {"dose": keys.dose_key, "time": keys.time_key, "kind": keys.kind_key}
    columns |= {what: column for what, column in named.items() if column}
    for what, own, unit, usual in (
        ("dose_unit", keys.dose_key, keys.dose_unit, UNIT_COLUMNS),
        ("time_unit", keys.time_key, keys.time_unit, TIME_UNIT_COLUMNS),
    ):
        if own and unit in shared:
            columns[what] = str(unit)
        elif own and unit is None:
            columns |= {what: next(c for c in usual if c in shared)} if {*usual} & {*shared} else {}
    return columns


def distinct_rows(columns: Sequence[tuple[np.ndarray, list[str]]]) -> tuple[np.ndarray, list[tuple[str | None, ...]]]:
    """The distinct rows of several columns, None for what is missing, and which of them every cell has, (cells,).

    Args:
        columns: codes (cells,) of each, -1 where it is missing, and the names that they stand for.
    """
    sizes = [len(names) + 1 for _, names in columns]
    code, values = pd.factorize(np.ravel_multi_index([codes.astype(np.int64) + 1 for codes, _ in columns], sizes))
    texts = [np.array([None, *names], dtype=object) for _, names in columns]
    parts = np.unravel_index(values, sizes)
    return code, list(zip(*(own[part].tolist() for own, part in zip(texts, parts, strict=True)), strict=True))


class _Reader:
    """Turns what columns say of a cell into a label; remembers the treatments, and what is worth a sentence."""

    def __init__(self, names: set[str], control: str, keys: TreatmentKeys) -> None:
        self.names, self.control, self.keys = names, control, keys
        if keys.parse_labels:
            self.names = names | {agent_of(name) for name in names}
        self.treatments: dict[str, Treatment] = {}
        self.plain = set[str]()  # labels that are names alone
        self.read = dict[str, str]()  # label as it stood -> canonical label
        self._zero: list[bool] = []
        self._without: list[str] = []  # one each of the rows of the file that is read: its name, where it has no dose
        self.n_zero, self.without = 0, dict[str, int]()

    def __call__(self, cell: dict[str, str | None]) -> str | None:
        name = cell["name"]
        zero = name is not None and name != self.control and self._is_zero(name, cell.get("dose"))
        self._zero.append(zero)
        label = name if name is None or zero else self._label(name, cell)
        lacks = label is not None and label != self.control and "dose" in cell and cell["dose"] is None
        self._without.append(str(name) if lacks and not zero else "")
        if name is not None and label not in (None, name):
            self.read.setdefault(name, str(label))
        return self.control if zero else label

    def _label(self, name: str, cell: dict[str, str | None]) -> str:
        if name == self.control:
            return name
        parts = parts_of(name, self.names, self.control, SIGN)
        if self.keys.parse_labels:
            found = [_last(part) for part in parts]
        else:
            own = [self._own(cell, i, parts) for i in range(len(parts))]
            told = [
                one for one in zip(parts, own, strict=True) if len(parts) == 1 or _nonzero([one[1].get("dose") or ""])
            ]
            found = [_treatment(part, said, self.keys) for part, said in told]
        if self.keys.parse_labels:
            found = [t for t in found if t.agent != self.control and (len(parts) == 1 or t.dose != 0)]
        if any(t.time == 0 for t in found):
            raise EvaeError(f"'{name}' is at time 0; leave these cells out with where, or name them as controls.")
        self.treatments |= {t.label: t for t in found if not t.is_plain}
        if found and all(t.is_plain for t in found):
            self.plain.add(name)
        return SIGN.join(t.label for t in found) or self.control

    def _is_zero(self, name: str, dose: str | None) -> bool:
        if self.keys.parse_labels:
            return all(t.dose == 0 for t in map(_last, parts_of(name, self.names, self.control, SIGN)))
        return dose is not None and not _nonzero(dose.split(SIGN))

    def _own(self, cell: dict[str, str | None], number: int, parts: list[str]) -> dict[str, str | None]:
        """What the columns say of one part of a combination."""
        own = dict[str, str | None]()
        for what, text in cell.items():
            pieces = [] if text is None else text.split(SIGN)
            pieces = _nonzero(pieces) if what == "dose" and len(pieces) > len(parts) else pieces  # of part and control
            if what == "name" or len(pieces) < 2:
                own[what] = text or None
            elif len(pieces) != len(parts):
                raise EvaeError(
                    f"'{cell['name']}' is {number_of(len(parts), 'perturbation')}, but '{text}' {len(pieces)}; mend it."
                )
            else:
                own[what] = pieces[number].strip() or None
        return own

    def count(self, cells: np.ndarray) -> None:
        """Take note of the file that was read, whose rows have so many cells, (rows,)."""
        self.n_zero += int(cells[np.array(self._zero, dtype=bool)].sum())
        for name, n in zip(self._without, cells.tolist(), strict=True):
            if name:
                self.without[name] = self.without.get(name, 0) + n
        self._zero, self._without = [], []

    def notes(self) -> list[str]:
        """Sentences on what was read."""
        n, shown = len(self.treatments), next(iter(self.read.items()), None)
        counted = number_of(n, "treatment is", "treatments are")
        if not n:
            what = "no label ends in a dose, a time or a kind" if self.keys.parse_labels else "no cell has any of them"
            raise EvaeError(f"{what}; labels are such as '{min(self.names)}'. Leave {', '.join(self.keys.used)} out.")
        found = [f"{counted} told apart" + (f", such as '{shown[0]}': {shown[1]}" if shown else "")]
        if self.keys.parse_labels:
            plain = sorted(self.plain)
            found += [f"labels that say neither dose, time nor kind: {first_of(plain, 3)}"] if plain else []
        if self.n_zero:
            found.append(
                f"{number_of(self.n_zero, 'cell of dose 0 counts', 'cells of dose 0 count')} as controls "
                f"('{self.control}')"
            )
        if self.without:
            found.append(
                f"{number_of(sum(self.without.values()), 'perturbed cell has', 'perturbed cells have')} no dose: "
                f"{first_of(list(self.without), 3)}"
            )
        return found


def _nonzero(doses: list[str]) -> list[str]:
    """Those that are not written as 0."""
    return [dose for dose in doses if (read_amount(dose) or (1.0, ""))[0] != 0]


def _treatment(agent: str, cell: dict[str, str | None], keys: TreatmentKeys) -> Treatment:
    dose, time, kind = cell.get("dose"), cell.get("time"), cell.get("kind")
    fields = dict[str, Any]()
    if dose is not None:
        value, unit = _amount(dose, keys.dose_key, cell, "dose_unit", keys.dose_unit)
        if not unit:
            raise EvaeError(
                f"obs column '{keys.dose_key}' holds numbers without a unit, such as {dose}; say it: dose_unit=nM, or "
                "the column that holds it."
            )
        if unit_of(unit) is None:
            raise EvaeError(f"unknown unit of a dose '{unit}'. {near_matches(unit, list(FACTORS))}")
        fields |= dict(zip(("dose", "dose_unit"), as_dose(value, unit), strict=True))
    if time is not None:
        value, unit = _amount(time, keys.time_key, cell, "time_unit", keys.time_unit)
        fields["time"] = as_hours(value, unit or "h")
    return Treatment(agent, kind=kind_of(kind) if kind else "", **fields)


def _amount(
    text: str, key: str | None, cell: dict[str, str | None], column: str, named: str | None
) -> tuple[float, str]:
    """A number and its unit: the text's own, that of the column of units, or the named one."""
    amount = read_amount(text)
    if amount is None:
        raise EvaeError(f"obs column '{key}' holds '{text}', which is no number with or without a unit; mend it.")
    return amount[0], amount[1] or (cell[column] or "" if column in cell else named or "")
