"""What the label of a perturbation says: its agent, and of the treatment the kind, the dose and the time.

    DrugA 10 uM 24 h        STAT1 activation        IFNB 100 ng/mL 6 h

The parts stand in this order, with spaces between, and each but the agent may be missing. A dose is in the base unit of
its family (`BASES`), a time in hours, so that a treatment has the same label in every dataset. A combination is written
with the sign between whole treatments: `DrugA 10 uM+IFNB 1 ng/mL+STAT1 knock-out`.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .contract_evae import EvaeError, near_matches

_MOLAR = {"M": 1e6, "mM": 1e3, "uM": 1.0, "nM": 1e-3, "pM": 1e-6}
_MASS = {"g/L": 1e6, "mg/mL": 1e6, "mg/L": 1e3, "ug/mL": 1e3, "ng/uL": 1e3, "ng/mL": 1.0, "ug/L": 1.0, "pg/mL": 1e-3}
FAMILIES: dict[str, dict[str, float]] = {
    "molar": _MOLAR,
    "mass per volume": _MASS,
    "activity": {"U/mL": 1.0, "IU/mL": 1.0, "kU/mL": 1e3, "mU/mL": 1e-3},
    "mass per body weight": {"mg/kg": 1.0, "ug/kg": 1e-3, "g/kg": 1e3},
    "radiation": {"Gy": 1.0, "mGy": 1e-3},
    "share": {"%": 1.0},
    "fold": {"x": 1.0, "MOI": 1.0},
}
BASES = {family: next(unit for unit, factor in units.items() if factor == 1.0) for family, units in FAMILIES.items()}
FACTORS = {unit: factor for units in FAMILIES.values() for unit, factor in units.items()}
FAMILY = {unit: family for family, units in FAMILIES.items() for unit in units}
HOURS = {
    "h": 1.0,
    "hr": 1.0,
    "hrs": 1.0,
    "hour": 1.0,
    "hours": 1.0,
    "d": 24.0,
    "day": 24.0,
    "days": 24.0,
    "min": 1 / 60,
    "mins": 1 / 60,
    "minutes": 1 / 60,
    "s": 1 / 3600,
    "sec": 1 / 3600,
    "w": 168.0,
    "week": 168.0,
    "weeks": 168.0,
}
KINDS = {  # what is written -> the field's term
    **dict.fromkeys(("ko", "knockout", "knock-out", "crispr", "crispr-cas9", "crispr-ko", "cas9"), "knock-out"),
    **dict.fromkeys(("crispri", "interference", "knock-down", "knockdown", "kd", "crispr-dcas9-krab"), "interference"),
    **dict.fromkeys(("crispra", "activation", "crispr-activation"), "activation"),
    **dict.fromkeys(("overexpression", "orf", "oe"), "overexpression"),
    **dict.fromkeys(("drug", "compound", "small-molecule", "chemical"), "drug"),
    **dict.fromkeys(("cytokine", "ligand"), "cytokine"),
}
_NUMBER = r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+"
_AMOUNT = re.compile(rf"\s*({_NUMBER})\s*(\D.*?)?\s*")
_LAST = re.compile(rf"^(.+?)[_ @](?:({_NUMBER})[_ ]?(%|[A-Za-zµμ][A-Za-zµμ/]*)|([A-Za-z0-9-]+))$")


@dataclass(frozen=True)
class Treatment:
    """One agent, and how it is applied.

    Attributes:
        agent: a gene, a drug, a cytokine.
        kind: such as knock-out, interference, activation, drug, cytokine; "" where it is not said.
        dose: in `dose_unit`, above 0; None where it has none.
        dose_unit: the base unit of a family.
        time: hours; None where it is not said.
    """

    agent: str
    kind: str = ""
    dose: float | None = None
    dose_unit: str = ""
    time: float | None = None

    @property
    def label(self) -> str:
        """The canonical label."""
        dose = [] if self.dose is None else [f"{self.dose:.6g} {self.dose_unit}"]
        time = [] if self.time is None else [f"{self.time:.6g} h"]
        return " ".join([self.agent, *([self.kind] if self.kind else []), *dose, *time])

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the agent is said."""
        return not self.kind and self.dose is None and self.time is None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def as_dose(value: float, unit: str) -> tuple[float, str]:
    """A dose in the base unit of its family, and this unit.

    Raises:
        EvaeError: an unknown unit, or no number above 0.
    """
    known = unit_of(unit)
    if known is None:
        raise EvaeError(f"unknown unit of a dose '{unit}'. {near_matches(unit, list(FACTORS))}")
    if not 0 < value < math.inf:
        raise EvaeError(f"a dose is {value:g} {unit}; give a number above 0 (dose 0 is the control).")
    return _tidy(value * FACTORS[known]), BASES[FAMILY[known]]


def as_hours(value: float, unit: str = "h") -> float:
    """A time in hours.

    Raises:
        EvaeError: an unknown unit, or no number above 0.
    """
    if unit.lower() not in HOURS:
        raise EvaeError(f"unknown unit of time '{unit}'. {near_matches(unit, list(HOURS))}")
    if not 0 < value < math.inf:
        raise EvaeError(f"a time is {value:g} {unit}; give a number above 0.")
    return _tidy(value * HOURS[unit.lower()])


def unit_of(text: str) -> str | None:
    """The unit of a dose as `FACTORS` names it; None for another text. Only M needs its capital."""
    plain = text.strip().replace("µ", "u").replace("μ", "u").replace(" ", "")
    lower = {unit.lower(): unit for unit in FACTORS if unit != "M"}
    return plain if plain in FACTORS else lower.get(plain.lower())


def kind_of(text: str) -> str:
    """The field's term for a kind of perturbation; another word stays, in small letters."""
    plain = text.strip().lower().replace("_", "-").replace(" ", "-")
    return KINDS.get(plain, plain)


def read_amount(text: str) -> tuple[float, str] | None:
    """The number and the unit of a text such as `10`, `10 uM` or `24h`, the unit "" where there is none; else None."""
    found = _AMOUNT.fullmatch(str(text))
    return (float(found[1]), (found[2] or "").strip()) if found else None


def readings(label: str) -> Iterator[Treatment]:
    """What a label may say, with ever more of its end taken from the agent: the first is the whole label as an agent.

    The rule: pieces at the end, each after `_`, `@` or a space, are read as a dose (number and unit), a time (number
    and unit) or a kind (one of `KINDS`), in any order, each once.
    """
    agent, found = label.strip(), dict[str, Any]()
    yield Treatment(agent)
    while matched := _LAST.match(agent):
        own = _piece(matched[2], matched[3], matched[4])
        if own is None or own.keys() & found.keys():
            return
        agent, found = matched[1], found | own
        yield Treatment(agent, **found)


def _piece(number: str | None, unit: str | None, word: str | None) -> dict[str, Any] | None:
    if word is not None:
        return {"kind": KINDS[word.lower()]} if word.lower() in KINDS else None
    assert number is not None
    assert unit is not None
    if (known := unit_of(unit)) is not None:
        return {"dose": _tidy(float(number) * FACTORS[known]), "dose_unit": BASES[FAMILY[known]]}
    return {"time": _tidy(float(number) * HOURS[unit.lower()])} if unit.lower() in HOURS else None


def dose_units(treatments: Iterable[Treatment]) -> list[str]:
    """The base units of the doses, one of each family, in the order in which they come."""
    return list(dict.fromkeys(t.dose_unit for t in treatments if t.dose is not None))


def _tidy(value: float) -> float:
    """Without what conversion adds: 0.1 mM is 100 uM, not 100.00000000000001."""
    return float(f"{value:.12g}")
