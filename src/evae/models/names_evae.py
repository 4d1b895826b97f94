"""What a model knows by name: perturbations, their parts and treatments, and what training saw of them.

The prior's ids are those of `units`: the agents of treatments, the parts of combinations, names with a feature vector.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .contract_evae import EvaeError, look_up, near_matches, parts_of
from .treatments_evae import Treatment, as_dose, dose_units, readings


class KnownTreatments:
    """The treatments that a model was trained on, and what they make of a label or a request.

    Args:
        treatments: label -> treatment.
        agents: names of the agents, and of perturbations without any treatment.
        plain: which of them training saw without a treatment, such as the control.
    """

    def __init__(
        self, treatments: Mapping[str, Treatment], agents: Collection[str], plain: Collection[str] = ()
    ) -> None:
        self.treatments, self.agents, self.plain = treatments, set(agents), set(plain)
        self.of_agent: dict[str, list[Treatment]] = {}
        for treatment in treatments.values():
            self.of_agent.setdefault(treatment.agent, []).append(treatment)

    def __contains__(self, label: object) -> bool:
        return self.read(str(label)) is not None

    def read(self, label: str) -> Treatment | None:
        """What a label says; None where its agent is unknown."""
        if label in self.treatments:
            return self.treatments[label]
        if not self.treatments:
            return Treatment(label) if label in self.agents else None
        return next((t for t in readings(label) if t.agent in self.agents), None)

    def asked(
        self, label: str, dose: float | None = None, dose_unit: str | None = None, time: float | None = None
    ) -> Treatment | None:
        """The treatment that a request is for; what it leaves out is taken where all treatments of the agent agree.

        Args:
            label: an agent, or a label that says more.
            dose, dose_unit: beside the label; in the unit of the known doses of the agent if None.
            time: hours.

        Raises:
            EvaeError: something said twice, not said and not to be told, in a unit of another family, or a dose (a
                time) of an agent that was only seen without.
        """
        said = self.read(label)
        if said is None:
            return None
        if label in self.plain and dose is None and time is None:
            return said
        known = self.of_agent.get(said.agent) or list(
            self.treatments.values()
        )  # of a new agent what all have in common
        if (dose is not None and said.dose is not None) or (time is not None and said.time is not None):
            raise EvaeError(
                f"'{label}' names its dose or time itself; leave dose and time out, or name the agent alone."
            )
        self._check_taken(label, said, dose, time)
        amount, own = said.dose, said.dose_unit
        if dose is not None:
            amount, own = as_dose(dose, dose_unit or _only(label, "dose unit", dose_units(known) or self.dose_units()))
        hours = said.time if time is None else time
        if amount == 0 or (hours is not None and not 0 < hours < math.inf):
            raise EvaeError(f"'{label}': give a dose and a time above 0; at dose 0 a cell is a control.")
        units = dose_units(known) or self.dose_units()
        if amount is not None and own not in units:
            of = f" of '{said.agent}'" if said.agent in self.of_agent and units != self.dose_units() else ""
            family = f"doses{of} in {' and '.join(units)}" if units else "no doses"
            mend = f"give it in {' or '.join(units)}" if units else "leave the dose out"
            raise EvaeError(f"'{label}' is asked for at {amount:g} {own}, but the model knows {family}; {mend}.")
        known = [t for t in known if amount is not None and t.dose_unit == own] or known
        kind = said.kind or _only(label, "kind", {t.kind for t in known})
        alike = [t for t in known if t.kind == kind] or known
        if amount is None:
            own = _only(label, "dose unit", dose_units(alike)) or ""
            amount = _only(label, "dose", {t.dose for t in alike})
        if hours is None:
            hours = _only(label, "time", {t.time for t in alike})
        return Treatment(said.agent, kind or "", amount, own if amount is not None else "", hours)

    def kinds(self) -> list[str]:
        """The kinds, in the order in which they were first known: ids of the model."""
        return list(dict.fromkeys(t.kind for t in self.treatments.values() if t.kind))

    def dose_units(self) -> list[str]:
        """The units of doses, one of each family, in the order in which they were first known: places in the model."""
        return dose_units(self.treatments.values())

    def numbers(self, treatment: Treatment, kinds: Sequence[str], units: Sequence[str]) -> list[float]:
        """Kind (its id), dose in the first unit, hours, doses in the others, as the model takes them; NaN is unsaid.

        Raises:
            EvaeError: a kind that the model was not trained on.
        """
        if treatment.kind and treatment.kind not in kinds:
            raise EvaeError(f"unknown kind of perturbation '{treatment.kind}'. {near_matches(treatment.kind, kinds)}")
        kind = kinds.index(treatment.kind) if treatment.kind else math.nan
        doses = [math.nan if treatment.dose is None or treatment.dose_unit != u else treatment.dose for u in units]
        time = math.nan if treatment.time is None else treatment.time
        return [float(kind), *(doses[:1] or [math.nan]), time, *doses[1:]]

    def takes(self, part: str, what: str) -> bool:
        """Whether a part of a combination may have a "dose" (a "time"): its agent was seen with one, or never."""
        agent = said.agent if (said := self.read(part)) else part
        seen = self.of_agent.get(agent, [])
        return any(getattr(t, what) is not None for t in seen) or not (seen or agent in self.plain)

    def _check_taken(self, label: str, said: Treatment, dose: float | None, time: float | None) -> None:
        """Raise `EvaeError` where a dose or a time is asked for of an agent that was only seen without."""
        for what, beside in (("dose", dose), ("time", time)):
            if (getattr(said, what) is None and beside is None) or self.takes(label, what):
                continue
            taking = [agent for agent, own in self.of_agent.items() if any(getattr(t, what) is not None for t in own)]
            shown = f"'{said.agent}' was seen without a {what}; leave it out"
            raise EvaeError(f"{shown}. {what.capitalize()}s are known of {_first(taking)}." if taking else f"{shown}.")

    def neighbours(
        self, treatment: Treatment, usable: Callable[[str], bool] = lambda label: True
    ) -> list[tuple[Treatment, float]]:
        """Known treatments around one by its dose, and weights that sum to 1, linear in log dose; [] if there are none.

        They are of the same agent, kind and time, and their labels `usable`. Beyond them it is the nearest one.
        """
        same = [
            t
            for t in self.of_agent.get(treatment.agent, [])
            if (t.kind, t.time, t.dose_unit) == (treatment.kind, treatment.time, treatment.dose_unit)
            and usable(t.label)
        ]
        if not same or treatment.dose is None:
            return []
        same.sort(key=lambda t: t.dose or 0.0)
        logs = np.log10([t.dose or 1.0 for t in same])
        place = float(np.interp(np.log10(treatment.dose), logs, np.arange(len(same))))
        low = int(place)
        return [(same[i], weight) for i, weight in ((low, 1 - place + low), (low + 1, place - low)) if weight > 0]


def _first(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{name}'" for name in names[:most]) + more


HOW = {"dose": "'DrugA 1 uM'", "time": "'DrugA 6 h'", "kind": "'STAT1 activation'", "dose unit": "'DrugA 1 uM'"}


def _only(label: str, what: str, values: Collection[Any]) -> Any:
    """The one value; raises where there are several."""
    if len(values) > 1:
        shown = ", ".join(f"{v:g}" if isinstance(v, float) else f"'{v}'" for v in sorted(values, key=_order))
        raise EvaeError(f"'{label}' was seen with several {what}s ({shown}); say which {what} is meant: {HOW[what]}.")
    return next(iter(values), None)


def _order(value: Any) -> tuple[bool, Any]:
    return (value is not None, value if value is not None else 0)


class PerturbationNames:
    """The perturbations of a model.

    Args:
        perturbations: names of the training perturbations.
        units: names of the prior's ids.
        control: the control's name.
        sign: between the parts of a combination; "" for none.
        treatments: label -> treatment of all parts that have one.
    """

    def __init__(
        self,
        perturbations: Sequence[str],
        units: Sequence[str],
        control: str | None,
        sign: str,
        treatments: Mapping[str, Treatment],
    ) -> None:
        self.perturbations, self.units, self.control, self.sign = perturbations, units, control, sign
        self.known = KnownTreatments(treatments, units, [name for name in perturbations if name not in treatments])
        if treatments:  # a part may be seen in combinations alone
            parts = (part for name in perturbations if name not in self.known for part in self._pieces(name))
            self.known.plain.update(part for part in parts if part not in treatments)
        self._combined: bool | None = None

    def parts(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Perturbation -> the parts of a combination, of any other its own canonical label."""
        return {name: self._parts(name) for name in dict.fromkeys(map(str, names))}

    def _parts(self, name: str) -> list[str]:
        if name in self.known:
            return [self._canonical(name)]
        parts = [self._canonical(part) for part in self._pieces(name)]
        return parts if len(parts) == 1 or self._saw_combinations() else [name]

    def _pieces(self, name: str) -> list[str]:
        return parts_of(name, self.known, self.control, self.sign)

    def _canonical(self, name: str) -> str:
        said = self.known.read(name)
        return name if said is None else said.label

    def _saw_combinations(self) -> bool:
        """Whether some training perturbation is a combination; else no name is split."""
        if self._combined is None:
            made = (name for name in self.perturbations if name not in self.known)
            self._combined = any(len(self._pieces(p)) > 1 for p in made)
        return self._combined

    def ids(self, names: Sequence[str]) -> torch.Tensor:
        """The prior's ids, int64 (names,); with combinations (names, parts), padded with -1.

        Raises:
            EvaeError: a name, or one of its parts, is unknown.
        """
        known = list(dict.fromkeys([*self.perturbations, *self.units]))  # near matches begin with what training saw
        rows = {}
        for name, parts in self.parts(names).items():
            look_up([part for part in parts if part not in self.known], known, "perturbation")
            agents = [said.agent for part in parts if (said := self.known.read(part)) is not None]
            rows[name] = look_up(agents, self.units, "perturbation")
        width = max((len(row) for row in rows.values()), default=1)
        ids = np.full((len(names), width), -1, dtype=np.int64)
        for row, name in zip(ids, names, strict=True):
            row[: len(rows[str(name)])] = rows[str(name)]
        return torch.from_numpy(ids[:, 0] if width == 1 else ids)

    def numbers(self, names: Sequence[str]) -> torch.Tensor:
        """Kind, dose and hours of every part, float32 (names, parts, 3 or more), see `KnownTreatments.numbers`.

        Raises:
            EvaeError: a treatment that leaves open which dose, time or kind is meant.
        """
        parts, kinds, units = self.parts(names), self.known.kinds(), self.known.dose_units()
        none = self.known.numbers(Treatment(""), kinds, units)
        width = max((len(own) for own in parts.values()), default=1)
        rows = {}
        for name, own in parts.items():
            found = [self.known.asked(part) for part in own]
            told = [none if one is None else self.known.numbers(one, kinds, units) for one in found]
            rows[name] = [*told, *[none] * (width - len(own))]
        return torch.tensor([rows[str(name)] for name in names], dtype=torch.float32).reshape(
            len(names), width, len(none)
        )

    def complete(self, name: str, dose: float | None, dose_unit: str | None, time: float | None) -> str:
        """The canonical label of a request; what it leaves out is taken where the known treatments agree on it.

        Of a combination, a dose and a time are those of every part that was seen with one.

        Raises:
            EvaeError: see `KnownTreatments.asked`.
        """
        as_named = dose is None and time is None
        if as_named and (not self.known.treatments or name in self.perturbations):
            return name
        parts = self._parts(name)
        doses, times = self._of_each(parts, "dose", dose), self._of_each(parts, "time", time)
        found = [self.known.asked(part, doses[part], dose_unit, times[part]) for part in parts]
        labels = [part if one is None else one.label for part, one in zip(parts, found, strict=True)]
        return self.sign.join(labels)

    def _of_each(self, parts: Sequence[str], what: str, amount: float | None) -> dict[str, float | None]:
        """Part -> its dose (time): the amount, None for a part of agents that were never seen with one."""
        taking = [part for part in parts if self.known.takes(part, what)] or parts
        return {part: amount if part in taking else None for part in parts}

    def supports(self, pairs: Sequence[tuple[str, str]], seen: Mapping[str, Sequence[str]]) -> list[str]:
        """What training saw of each (cell type, perturbation), see `EvaeProcessor.supports`; `seen` are its pairs."""
        names = {name for own in seen.values() for name in own}
        parts = {name: frozenset(own) for name, own in self.parts([*names, *(p for _, p in pairs)]).items()}
        by_kind = {kind: {parts[name] for name in own} for kind, own in seen.items()}
        anywhere = frozenset[frozenset[str]]().union(*by_kind.values())
        agents = {name: frozenset(map(self._agent, own)) for name, own in parts.items()}
        agents_seen = {agents[name] for name in names if agents[name] != parts[name]}  # with a treatment
        found = []
        for cell_type, perturbation in pairs:
            asked = parts[perturbation]
            apart = "seen apart" if asked in anywhere and by_kind.get(cell_type) else "unseen"
            if asked not in anywhere and agents[perturbation] in agents_seen:
                apart = "seen otherwise"
            found.append("seen together" if asked in by_kind.get(cell_type, ()) else apart)
        return found

    def _agent(self, label: str) -> str:
        said = self.known.read(label)
        return label if said is None else said.agent
