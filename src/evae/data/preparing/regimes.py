"""Held-out questions by their short names: what is to be predicted that training has not seen.

    unseen-cell-type:CD14 Mono        every perturbed cell of these cell types; their controls stay in training
    unseen-perturbation:0.2           a random fifth of the perturbations, or named ones, in every cell type
    unseen-dose:DrugA,DrugB           the middle one of three or more doses, of these agents or of all
    unseen-both:CD14 Mono:0.2         perturbations that training sees nowhere, in a cell type without perturbed cells
    unseen-each:CD14 Mono:0.2         the perturbed cells of the cell type, and the perturbations everywhere
    doubles:0,1,2-seen                combinations of two, of which training sees so many single perturbations
    donors:patient:P1,P2              the perturbed cells with these values in an obs column
    k-fold:2/5                        the second of five parts of all (cell type, perturbation) pairs

What would give the answer away is left out of training and test: with an unseen perturbation the combinations that
hold it, with `unseen-both` the rest of its row and column, with `doubles` whatever holds an unseen single one.
A perturbation is an agent with all of its doses, times and kinds, unless a label with a dose is named.
A study also takes `k-fold:5`, all parts in turn, and `leave-one-cell-type-out:B,NK`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evae.common.messages import number_of
from evae.data.preparing.known_labels import Known
from evae.models.contract_evae import EvaeError, check_unique, look_up, split_names
from evae.models.treatments_evae import Treatment

MIN_CELLS = 20  # of a (cell type, perturbation) pair, to be held out by default
UNSEEN = 0.25  # share of single perturbations, and of combinations, that `doubles` holds out
DRAWS = 100  # of unseen single perturbations, until there are combinations of all kinds that are asked for
DEFAULT_FRACTION = "0.2"


def is_regime(text: str) -> bool:
    """Whether a split is asked for by a short name."""
    return text.partition(":")[0] in (*_REGIMES, "leave-one-cell-type-out")


def hold_out(text: str, known: Known) -> dict[str, Any]:
    """What a short name holds out, as fields of `Split`.

    Args:
        text: such as "unseen-cell-type:NK".
        known: the labels of the data.

    Raises:
        EvaeError: a name that does not occur, a text that cannot be read, or nothing left to hold out or to train on.
    """
    kind, _, rest = text.partition(":")
    if kind not in _REGIMES:
        raise EvaeError(f"'{text}' is several splits; hold out one, as unseen-cell-type:NAME, or ask `evae study`.")
    try:
        found = _REGIMES[kind](rest.strip(), known)
    except EvaeError as error:
        raise EvaeError(f"the split {text}: {error}") from None
    return found


def expand(text: str, known: Known) -> dict[str, str]:
    """The splits that a study runs for one text, name -> short name of one split.

    `k-fold:5` is five splits, `leave-one-cell-type-out:B,NK` one for each cell type named; without names, for each
    with at least `MIN_CELLS` controls and as many perturbed cells. Everything else is itself.

    Raises:
        EvaeError: an unknown cell type, or no number of parts.
    """
    kind, _, rest = text.partition(":")
    if kind == "k-fold" and "/" not in rest:
        return {f"{kind}:{i + 1}/{n}": f"{kind}:{i + 1}/{n}" for n in [_parts(rest)] for i in range(n)}
    if kind != "leave-one-cell-type-out":
        return {text: text}
    named = split_names(rest, set(known.cell_types))
    look_up(named, known.cell_types, "cell type")
    controls = known.cells[:, list(known.perturbations).index(known.control)]
    enough = np.minimum(controls, known.cells.sum(axis=1) - controls) >= MIN_CELLS
    chosen = named or [c for c, is_enough in zip(known.cell_types, enough, strict=True) if is_enough]
    return {name: f"unseen-cell-type:{name}" for name in chosen}


def _unseen_cell_type(rest: str, known: Known) -> dict[str, Any]:
    chosen = _named(rest, known.cell_types, "cell type")
    others = [c for c in known.cell_types if c not in chosen]
    if not known.pairs(others, known.perturbed):
        raise EvaeError("no perturbed cell is left to train on; hold out fewer cell types.")
    return _product(chosen, list(dict.fromkeys(p for _, p in known.pairs(chosen, known.perturbed))))


def _unseen_perturbation(rest: str, known: Known) -> dict[str, Any]:
    chosen, relatives = _unseen_names(rest, known)
    return _product(known.cell_types, chosen) | {"left_out": tuple(known.pairs(known.cell_types, relatives))}


def _unseen_both(rest: str, known: Known) -> dict[str, Any]:
    cell_type, chosen, relatives = _row_and_column(rest, known)
    others = [c for c in known.cell_types if c != cell_type]
    row = known.pairs([cell_type], [p for p in known.perturbed if p not in chosen])
    column = known.pairs(others, [*chosen, *relatives])
    return _product([cell_type], chosen) | {"left_out": tuple(dict.fromkeys([*row, *column]))}


def _unseen_each(rest: str, known: Known) -> dict[str, Any]:
    cell_type, chosen, relatives = _row_and_column(rest, known)
    others = [c for c in known.cell_types if c != cell_type]
    row = known.pairs([cell_type], [p for p in known.perturbed if p not in relatives])
    left_out = known.pairs(known.cell_types, relatives)
    return {"pairs": (*row, *known.pairs(others, chosen)), "left_out": tuple(left_out)}


def _row_and_column(rest: str, known: Known) -> tuple[str, list[str], list[str]]:
    """A cell type, that with most perturbed cells if none is named, then as `_unseen_names`."""
    cell_type, which = rest, DEFAULT_FRACTION
    if rest and rest not in known.cell_types:
        cell_type, _, which = next(
            ((c, ":", rest[len(c) + 1 :]) for c in known.cell_types if rest.startswith(f"{c}:")), rest.partition(":")
        )
    controls = known.cells[:, list(known.perturbations).index(known.control)]
    cell_type = cell_type or known.cell_types[int((known.cells.sum(axis=1) - controls).argmax())]
    look_up([cell_type], known.cell_types, "cell type")
    return cell_type, *_unseen_names(which or DEFAULT_FRACTION, known)


def _unseen_names(rest: str, known: Known) -> tuple[list[str], list[str]]:
    """Perturbations to hold out, named or a random share, and the combinations that hold one of them."""
    agents = list(dict.fromkeys(map(known.agent, known.singles())))
    try:
        fraction = float(rest)
    except ValueError:
        names = _named(rest, list(dict.fromkeys([*known.perturbations, *agents])), "perturbation")
        if known.control in names:
            raise EvaeError(f"'{known.control}' is the control, which stays in training; take it out.") from None
        whole = {name for name in names if name in agents}
        chosen = list(dict.fromkeys(p for name in names for p in (known.of_agents([name]) or [name])))
    else:
        if not 0 < fraction < 1 or len(agents) < 2:
            raise EvaeError("give a share between 0 and 1, as 0.2, of at least two perturbations, or names.")
        n = min(len(agents) - 1, max(1, round(fraction * len(agents))))
        drawn = known.generator().permutation(len(agents))[:n]
        whole = {agents[i] for i in drawn}
        chosen = known.of_agents(whole)
    holding = {*chosen, *whole}
    relatives = [
        p for p in known.perturbed if p not in chosen and any({x, known.agent(x)} & holding for x in known.parts(p))
    ]
    if not set(known.perturbed) - {*chosen, *relatives}:
        raise EvaeError("no perturbation is left to train on; hold out fewer.")
    return chosen, relatives


def _unseen_dose(rest: str, known: Known) -> dict[str, Any]:
    agents = list(dict.fromkeys(t.agent for t in known.treatments.values()))
    wanted = _named(rest, agents, "agent") if rest else agents
    curves: dict[Treatment, list[str]] = {}
    for name in known.of_agents(wanted):
        own = known.treatments.get(name)
        if own is not None and own.dose is not None:
            curves.setdefault(replace(own, dose=None), []).append(name)
    by_dose = [sorted(names, key=lambda name: known.treatments[name].dose or 0.0) for names in curves.values()]
    inner = [names[len(names) // 2] for names in by_dose if len(names) > 2]
    if not inner:
        raise EvaeError("no agent has three doses at one time; tell doses apart with dose_key, or hold out others.")
    relatives = [p for p in known.perturbed if p not in inner and set(known.parts(p)) & set(inner)]
    return _product(known.cell_types, inner) | {"left_out": tuple(known.pairs(known.cell_types, relatives))}


def _doubles(rest: str, known: Known) -> dict[str, Any]:
    wanted = rest.removesuffix("-seen").split(",")
    if not rest.endswith("-seen") or not set(wanted) <= {"0", "1", "2"}:
        raise EvaeError("write how many of the two training sees, as doubles:2-seen or doubles:0,1,2-seen.")
    parts = {p: known.parts(p) for p in known.perturbed}
    doubles = [p for p, own in parts.items() if len(own) == 2]
    if not doubles:
        raise EvaeError("there is no combination of two perturbations, such as KLF1+TGFBR2.")
    rng = known.generator()
    for _ in range(DRAWS):
        unseen = _unseen_parts(wanted, doubles, parts, rng)
        seen = {p for p in known.perturbed if parts[p] == [p] and p not in unseen}
        among = {
            n: [p for p in doubles if sum(x in seen for x in parts[p]) == n == 2 - len(unseen & set(parts[p]))]
            for n in map(int, wanted)
        }
        if all(among.values()):
            break
    else:
        raise EvaeError(f"the data have no such combinations, of which training sees {' and '.join(wanted)}.")
    held_out = [p for n, of_n in among.items() if n < 2 for p in of_n]
    if 2 in among:
        held_out += rng.permutation(among[2])[: max(1, round(UNSEEN * len(among[2])))].tolist()
    relatives = [p for p in known.perturbed if p not in held_out and unseen & set(parts[p])]
    if not set(known.perturbed) - {*held_out, *relatives}:
        raise EvaeError("no perturbation is left to train on.")
    return _product(known.cell_types, held_out) | {"left_out": tuple(known.pairs(known.cell_types, relatives))}


def _unseen_parts(
    wanted: list[str], doubles: list[str], parts: dict[str, list[str]], rng: np.random.Generator
) -> set[str]:
    """Single perturbations that training may not see at all; both of some combination where that is asked for."""
    if not set(wanted) & {"0", "1"}:
        return set()
    names = sorted({part for p in doubles for part in parts[p]})
    unseen = set(rng.permutation(names)[: max(1, round(UNSEEN * len(names)))].tolist())
    return unseen | (set(parts[doubles[rng.integers(len(doubles))]]) if "0" in wanted else set())


def _donors(rest: str, known: Known) -> dict[str, Any]:
    key, _, names = rest.partition(":")
    if not key or not names:
        raise EvaeError("write the obs column and its values, as donors:patient:P1,P2.")
    return {"key": key, "values": tuple(split_names(names, ()))}


def _fold(rest: str, known: Known) -> dict[str, Any]:
    """Pairs dealt out in turn, all of a perturbation after each other, so that they come to different parts.

    Perturbations of a single cell type stay in training, unless all are: they would be unseen.
    """
    part, separator, n_parts = rest.partition("/")
    if not separator:
        raise EvaeError(f"say which part to hold out, as k-fold:1/{rest or 5}; `evae study` takes all in turn.")
    n = _parts(n_parts)
    if not part.isdigit() or not 1 <= int(part) <= n:
        raise EvaeError(f"'{part}' is no part of {n}; write k-fold:1/{n} up to k-fold:{n}/{n}.")
    rng = known.generator()
    pairs: list[tuple[str, str]] = []
    alone: list[tuple[str, str]] = []
    for p in rng.permutation(known.perturbed).tolist():
        kinds = [known.cell_types[c] for c in rng.permutation(len(known.cell_types))]
        found = [(c, p) for c in kinds if known.n_cells(c, p) >= MIN_CELLS]
        (pairs if len(found) > 1 else alone).extend(found)
    pairs = pairs or alone
    if len(pairs) < n:
        raise EvaeError(
            f"there are {number_of(len(pairs), 'pair')} with at least {MIN_CELLS} cells; ask for fewer parts."
        )
    return {"pairs": tuple(sorted(pairs[int(part) - 1 :: n]))}


def _parts(text: str) -> int:
    if not text.isdigit() or int(text) < 2:
        raise EvaeError(f"'{text}' is no number of parts; write k-fold:5.")
    return int(text)


def _named(rest: str, vocabulary: Sequence[str], kind: str) -> list[str]:
    names = split_names(rest, set(vocabulary))
    if not names:
        raise EvaeError(f"name the {kind}, or several with commas between.")
    look_up(names, vocabulary, kind)
    check_unique(names, kind)
    return names


def _product(cell_types: Sequence[str], perturbations: Sequence[str]) -> dict[str, Any]:
    if not perturbations:
        raise EvaeError(f"{', '.join(cell_types)} has no perturbed cell that could be held out.")
    return {"cell_types": tuple(cell_types), "perturbations": tuple(perturbations)}


_REGIMES: dict[str, Callable[[str, Known], dict[str, Any]]] = {
    "unseen-cell-type": _unseen_cell_type,
    "unseen-perturbation": _unseen_perturbation,
    "unseen-dose": _unseen_dose,
    "unseen-both": _unseen_both,
    "unseen-each": _unseen_each,
    "doubles": _doubles,
    "donors": _donors,
    "k-fold": _fold,
}
