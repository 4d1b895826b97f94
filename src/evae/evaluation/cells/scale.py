"""Which scale the values of cells have: raw counts, expected counts or log1p; judged cell by cell.

A cell of whole numbers is counts. A cell with fractions is taken for log1p only where its total after expm1 is
possible: log1p of counts per million gives a million, log1p of counts the library size. Fractions may also be
expected counts, which no rule can tell from log1p for sure, so those are to be stated.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp

from evae.common.messages import number_of
from evae.common.threads import in_threads
from evae.models.contract_evae import EvaeError, near_matches

SCALES = ("auto", "counts", "log1p")
POSSIBLE_TOTAL = 2e6  # twice counts per million
UNEXPLAINED_SPREAD = 30.0  # of the totals after expm1, 99th to 1st percentile
DOUBTFUL_SPREAD = 3.0
RAW, EXPECTED, LOG1P = "raw counts", "expected counts", "log1p"
_Judged: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
_LARGEST = 50.0  # expm1 of more says no more, and overflows


@dataclass(frozen=True)
class Scale:
    """The scale that the values of a source are taken for.

    Attributes:
        name: "raw counts", "expected counts" (counts with fractions, only where stated) or "log1p".
        reason: why, in a few words.
        option: the argument that states it, for messages; "" where there is none.
        stated: whether the user said so.
        doubt: a sentence for the report where the values may well be of another scale; else "".
        seen: whether all cells were checked as the scale was recognised.
        open: whether the totals of all cells are still to be judged, by `settled`.
    """

    name: str
    reason: str
    option: str = ""
    stated: bool = False
    doubt: str = ""
    seen: bool = False
    open: bool = False

    def check(self, block: Any, name: str) -> None:
        """Raise `EvaeError` unless a block of cells (cells, genes) is finite, not negative and of this scale."""
        if self.seen:
            return
        _check_numbers(block, name)
        if self.name == EXPECTED or (self.name == RAW and self.stated):
            return
        if self.open:
            fractional, filled = _kinds(sp.csr_matrix(block))
            self._check_kinds((fractional, filled, np.zeros(len(filled))), name)
        else:
            self._check_kinds(_judge(block), name)

    def settled(self, totals: list[np.ndarray], name: str) -> "Scale":
        """The scale, once all cells were read.

        Args:
            totals: of the cells after expm1, in parts, (cells,) each.
            name: what to call the cells in messages.

        Raises:
            EvaeError: totals that log1p does not explain.
        """
        found = np.concatenate([np.empty(0), *totals])
        found = found[found > 0]
        if not self.open:
            return self
        if not len(found):
            return Scale(LOG1P, "all cells are empty", self.option)
        _check_totals(found, name, self.option, stated=False)
        return _log1p(found, name, self.option)

    def _check_kinds(self, judged: "_Judged", name: str) -> None:
        fractional, filled, totals = judged
        if self.name == LOG1P:
            _check_totals(totals if self.stated else totals[fractional], name, self.option, self.stated)
        if not self.stated and (fractional if self.name == RAW else filled & ~fractional).any():
            stated = f', or state it with {self.option}="counts" or {self.option}="log1p"' if self.option else ""
            raise EvaeError(
                f"{name}: some cells hold whole numbers, some fractions; give one kind, counts or log1p values{stated}."
            )


def recognise_scale(
    blocks: Iterable[Any], name: str, stated: str = "auto", option: str = "", as_read: bool = False
) -> Scale:
    """The scale of cells.

    Whole numbers are read until the first cell that is not empty, for `Scale.check` holds every block to it as it
    is read; fractions are read to the end, for their totals are judged together.

    Args:
        blocks: the values, (cells, genes) each, dense or sparse.
        name: what to call the cells in messages.
        stated: "auto", "counts" or "log1p".
        option: the argument that states it, for messages; "" where there is none.
        as_read: leave fractions open at the first of them: the cells are about to be read, see `Scale.settled`.

    Raises:
        EvaeError: an unknown scale, NaN, negative values, whole and fractional cells, or fractions that no scale
            explains.
    """
    if stated not in SCALES:
        raise EvaeError(f"unknown scale '{stated}' of {name}. {near_matches(stated, SCALES)}")
    if stated == "log1p":
        return Scale(LOG1P, "as stated", option, stated=True)
    if stated == "counts":
        return Scale(EXPECTED if _any_fraction(blocks, name) else RAW, "as stated", option, stated=True)
    guess = Scale(LOG1P, "", option)
    totals: list[np.ndarray] = []

    def judge(block: Any) -> _Judged:
        _check_numbers(block, name)
        return _judge(block)

    for judged in in_threads(judge, blocks):
        fractional, filled, sums = judged
        if not filled.any():
            continue
        if not totals and not fractional.any():
            return Scale(RAW, "whole numbers", option)
        guess._check_kinds(judged, name)
        if as_read:
            return Scale(LOG1P, "", option, open=True)
        totals.append(sums[filled])
    if not totals:
        return Scale(RAW, "all cells are empty", option)
    return _log1p(np.concatenate(totals), name, option)


def _log1p(totals: np.ndarray, name: str, option: str) -> Scale:
    """log1p, unless the totals (cells,) after expm1 are too unlike."""
    low, high = np.percentile(totals, [1, 99])
    spread = high / low
    seen = f"totals after expm1 of {low:,.4g} to {high:,.4g}"
    if spread > UNEXPLAINED_SPREAD:
        stated = f' and {option}="log1p" if they are log1p' if option else ""
        raise EvaeError(f"{name}: fractions with {seen}, too unlike for log1p; {_mend(option)}{stated}.")
    doubt = ""
    if spread > DOUBTFUL_SPREAD:
        doubt = f"{name} were taken for log1p though their {seen} differ; {_mend(option)}"
    return Scale(LOG1P, f"fractions with {seen}", option, doubt=doubt, seen=True)


def _mend(option: str) -> str:
    return f'use {option}="counts" if they are expected counts' if option else "give raw counts"


def _check_totals(totals: np.ndarray, name: str, option: str, stated: bool) -> None:
    n_bad = int((totals > POSSIBLE_TOTAL).sum())
    if n_bad:
        so = (
            "cells cannot be log1p as stated"
            if stated
            else "cells hold fractions that are neither raw counts nor log1p"
        )
        raise EvaeError(
            f"{name}: {n_bad:,} {so} (total after expm1 up to {totals.max():.2g}, at most {POSSIBLE_TOTAL:.0e} is "
            f"possible); {_mend(option)}{'' if stated else ', else whole counts or log1p of normalised counts in X'}."
        )


def _any_fraction(blocks: Iterable[Any], name: str) -> bool:
    for block in blocks:
        _check_numbers(block, name)
        values = _values(block)
        if (values != np.floor(values)).any():
            return True
    return False


def _check_numbers(block: Any, name: str) -> None:
    values = _values(block)
    if values.size == 0:
        return
    if not np.isfinite(values).all():
        dense = block.toarray() if sp.issparse(block) else block
        n_bad = int((~np.isfinite(dense)).any(axis=1).sum())
        raise EvaeError(
            f"{name}: {number_of(n_bad, 'cell holds', 'cells hold')} NaN or infinite values; drop those cells first."
        )
    if values.min() < 0:
        raise EvaeError(f"{name}: negative values, so X looks scaled or centred; give raw counts or log1p values.")


def _judge(block: Any) -> _Judged:
    """Of each cell: whether it holds a fraction, whether it holds anything, its total after expm1; (cells,) each."""
    block = sp.csr_matrix(block)
    return *_kinds(block), totals_after_expm1(block)


def _kinds(block: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Of each cell: whether it holds a fraction, whether it holds anything; (cells,) each."""
    values, found = block.data, np.diff(block.indptr) > 0
    starts = block.indptr[:-1][found]  # of the cells that store anything
    fractional, filled = np.zeros((2, len(found)), dtype=bool)
    if len(starts):
        fractional[found] = np.logical_or.reduceat(values != np.floor(values), starts)
        filled[found] = np.maximum.reduceat(values, starts) > 0
    return fractional, filled


def totals_after_expm1(block: sp.csr_matrix) -> np.ndarray:
    """Total of each cell after expm1, (cells,)."""
    found = np.diff(block.indptr) > 0
    totals = np.zeros(len(found))
    if found.any():
        exact = np.expm1(np.minimum(block.data, _LARGEST, dtype=np.float64))
        totals[found] = np.add.reduceat(exact, block.indptr[:-1][found])
    return totals


def _values(block: Any) -> np.ndarray:
    return np.asarray(block.data if sp.issparse(block) else block)
