"""What several datasets say of themselves as one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evae.common.messages import number_of
from evae.data.format import Dataset, DatasetInfo
from evae.models.contract_evae import EvaeError


def united(datasets: Sequence[Dataset], shares: Sequence[float]) -> DatasetInfo:
    """What several datasets are together: the union of their vocabularies, and statistics of all cells.

    Args:
        datasets: over the same gene panel, with the same control.
        shares: of each in a batch, by which quantiles of the library size are mixed.

    Raises:
        EvaeError: datasets over different panels or with different controls.
    """
    infos = [dataset.info for dataset in datasets]
    first = infos[0]
    for dataset, info in zip(datasets, infos, strict=True):
        if info.genes != first.genes:
            raise EvaeError(
                f"{datasets[0]} and {dataset} count over different gene panels ({len(first.genes):,} and "
                f"{number_of(len(info.genes), 'gene')}); prepare the files together (`evae prepare a.h5ad b.h5ad`), or "
                "each with the same panel file (--genes)."
            )
        if info.control != first.control:
            raise EvaeError(
                f"{datasets[0]} and {dataset} have different controls ('{first.control}' and '{info.control}'); "
                "prepare them with one name for the control."
            )
    named = {name for info in infos for name in info.perturbations} - {first.control}
    splits = list(first.n_cells)
    return replace(
        first,
        perturbations=[first.control, *sorted(named)],
        cell_types=sorted({name for info in infos for name in info.cell_types}),
        statistics=_united_statistics([info.statistics for info in infos], shares, splits),
        split=first.split if all(info.split == first.split for info in infos) else {},
        treatments={name: own for info in infos for name, own in info.treatments.items()},
        n_cells={split: sum(info.n_cells[split] for info in infos) for split in splits},
    )


def _united_statistics(
    statistics: Sequence[dict[str, Any]], shares: Sequence[float], splits: Sequence[str]
) -> dict[str, Any]:
    counts: dict[str, dict[str, dict[str, int]]] = {split: {} for split in splits}
    for own in statistics:
        for split in splits:
            for kind, row in own["cell_counts"][split].items():
                united = counts[split].setdefault(kind, {})
                for name, n in row.items():
                    united[name] = united.get(name, 0) + n
    levels = np.linspace(0, 1, 101)
    quantiles = [np.array(own["library_size_quantiles"]) for own in statistics]
    sizes = np.unique(np.concatenate(quantiles))
    below = sum(share * np.interp(sizes, own, levels) for share, own in zip(shares, quantiles, strict=True))
    mixed = np.interp(levels, below, sizes)
    return {
        "cell_counts": counts,
        "library_size_quantiles": mixed.tolist(),
        "median_library_size": float(mixed[50]),
        "max_count": max(own["max_count"] for own in statistics),
        "nonzero_fraction": sum(s * own["nonzero_fraction"] for s, own in zip(shares, statistics, strict=True)),
        "dropped_cells": sum(own["dropped_cells"] for own in statistics),
        "sources": [source for own in statistics for source in own["sources"]],
    }
