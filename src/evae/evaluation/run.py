"""`evaluate`: one call from predicted and real cells to numbers beside baselines, tables, files and plots."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from evae.common.extras import require
from evae.common.progress import progress_bar
from evae.common.threads import in_threads
from evae.effects.features import read_vectors
from evae.evaluation.cells.comparison import Comparison, compare
from evae.evaluation.cells.inputs import Data, Progress
from evae.evaluation.protocols.cell_eval_adapter import cell_eval_protocol
from evae.evaluation.protocols.challenge import challenge_protocol
from evae.evaluation.protocols.depth import depth_protocol, depths_differ
from evae.evaluation.protocols.differential import de_protocol, default_cache
from evae.evaluation.protocols.distribution import (
    diversity_protocol,
    paper_protocol,
    perturbation_protocol,
    robust_protocol,
)
from evae.evaluation.protocols.extended import extended_protocol
from evae.evaluation.protocols.record import Record, to_frame
from evae.evaluation.result import EvaluationResult
from evae.evaluation.systems.baselines import System, baselines, model_system
from evae.evaluation.systems.others import other_models
from evae.evaluation.systems.scgen_baseline import scgen_shift
from evae.evaluation.systems.scvi_baseline import scvi_shift
from evae.models.contract_evae import EvaeError, near_matches

SUITES = {
    "paper": ("paper", "perturbation"),
    "robust": ("robust", "perturbation", "diversity"),
    "perturbation": ("perturbation", "differential expression"),
    "cell-eval": ("perturbation", "differential expression", "cell-eval"),
    "extended": ("robust", "perturbation", "differential expression", "extended", "diversity"),
    "vcc2026": ("vcc2026",),
    "full": ("paper", "robust", "perturbation", "differential expression", "extended", "diversity", "cell-eval"),
}


def _latent_additive(comparison: Comparison, seed: int) -> System:
    from evae.evaluation.systems.latent_additive import latent_additive  # loads torch

    return latent_additive(comparison, seed)


EXTRA_BASELINES: dict[str, Callable[[Comparison, int], System]] = {
    "latent-additive": _latent_additive,
    "scvi": scvi_shift,
    "scgen": scgen_shift,
}
_LIBRARIES = {"scvi": "scvi", "scgen": "pertpy"}  # which library a baseline needs; the extra has the baseline's name
_STAMPED = ("evae", "anndata", "numpy", "scipy", "scikit-learn", "POT", "cell-eval", "scvi-tools", "pertpy")


def evaluate(
    predicted: Data,
    real: Data,
    train: Data | None = None,
    controls: Data | None = None,
    *,
    perturbation_key: str = "perturbation",
    cell_type_key: str | None = "cell_type",
    predicted_perturbation_key: str | None = None,
    predicted_cell_type_key: str | None = None,
    control: str = "control",
    scale: str = "auto",
    real_scale: str = "auto",
    suite: str = "robust",
    seeds: int | Sequence[int] = (0, 1, 2),
    n_components: int = 30,
    depth_matched: bool | None = None,
    with_baselines: bool = True,
    extra_baselines: Sequence[str] = (),
    features: str | Path | None = None,
    others: Mapping[str, Data] | None = None,
    cache: str | Path | None = "default",
    progress: bool = True,
) -> EvaluationResult:
    """Compare predicted with real cells, beside baselines and the real cells' own split half.

    Values are recognised as raw counts or log1p (or stated), whoever predicted them, and compared as log1p CP10K
    over the real cells' genes. Inputs are never changed.

    Args:
        predicted: generated cells with obs perturbation and cell type: an AnnData, the path of an h5ad file,
            or a `DatasetSplit`. What is not in memory yet is read in blocks and kept in a temporary file, so
            that memory does not grow with it.
        real: the held-out cells that were to be predicted, in the same form; it may hold controls.
        train: training cells: needed for most baselines, for the components of the `robust` protocol and for
            the memorisation check; read in blocks. Cells that are held out are left out of it.
        controls: real control cells of the evaluated cell types; taken from `real`, else from `train`, when
            None.
        perturbation_key: obs column of the perturbation.
        cell_type_key: obs column of the cell type; None treats all cells as one type.
        predicted_perturbation_key, predicted_cell_type_key: the same columns of the predicted cells; None takes
            the real cells' where the predicted have them, else `perturbation` and `cell_type`, as predictions do.
        control: label of the control.
        scale: of the predicted values: "auto" recognises whole counts and log1p, cell by cell; "counts" takes
            fractions as expected counts, "log1p" as log1p.
        real_scale: the same of the real values. Training cells and controls are recognised.
        suite: "paper" (as published), "robust", "perturbation" (pseudobulks and differential expression),
            "cell-eval" (the same, and cell-eval itself beside it with its ceiling; needs the extra `eval`),
            "extended" (metrics that tell models apart, and every metric as a score between controls), "vcc2026"
            (metrics and scores of the Virtual Cell Challenge 2026; raw counts on both sides) or "full" (all but
            that); several with commas, such as "paper,robust".
        seeds: of the draws and splits, one or several; the first alone serves where one draw is made.
        n_components: principal components of W2, MMD2 and FD.
        depth_matched: also compare model, controls and split half at one depth: both sides thinned, see
            `evae.evaluation.protocols.depth`. None does so in the protocol `robust` where both sides are raw counts
            whose median depths differ by more than 1.5 times.
        with_baselines: compute the baselines too.
        extra_baselines: more of them, which are trained on the training cells: "latent-additive", a small network,
            "scvi" or "scgen" (extras of these names).
        features: npz, csv, tsv or parquet of feature vectors by perturbation: baselines for perturbations that no
            training cell has, see `evae.effects.features`.
        others: name of another model -> its predictions, in the same form as `predicted`: more rows of the tables.
        cache: folder that keeps what is known of the real cells alone (their differential expression, the numbers of
            their split half), by a hash of data and method, for the next prediction; "default" is ~/.cache/evae, None
            keeps nothing. At most 4 GB: the least recently used go first.
        progress: show progress bars.

    Returns:
        An `EvaluationResult`: `print()`, `to_json(path)`, `plots(folder)`, `report(folder)`.

    Raises:
        EvaeError: the input cannot be compared; the message says what to fix.
    """
    seeds = (seeds,) if isinstance(seeds, int) else tuple(seeds)
    _check(suite, seeds)
    vectors = check_extra_baselines(extra_baselines, features, suite)
    if suite == "vcc2026" and others:
        raise EvaeError("the suite vcc2026 has systems of its own; evaluate each model with it alone.")
    if train is None and (extra_baselines or features is not None):
        names = ", ".join([*extra_baselines, *([] if features is None else ["of features"])])
        raise EvaeError(f"the baseline {names} is trained on training cells; give them as train, or name a dataset.")
    started = time.perf_counter()
    keys: dict[str, Any] = {
        "perturbation_key": perturbation_key, "cell_type_key": cell_type_key, "control": control,
        "predicted_perturbation_key": predicted_perturbation_key, "predicted_cell_type_key": predicted_cell_type_key,
        "scale": scale, "real_scale": real_scale,
    }  # fmt: skip
    tables = default_cache() if cache == "default" else None if cache is None else Path(cache)
    with progress_bar(progress, unit="", transient=True) as bar:
        comparison = compare(
            predicted,
            real,
            train,
            controls,
            seed=seeds[0],
            progress=bar.track,
            rates=suite == "vcc2026",
            cache=tables,
            **keys,
        )
        groups = groups_of(suite)
        if depth_matched or (depth_matched is None and "robust" in groups and depths_differ(comparison)):
            groups = (*groups, "equal depth")
        beside = other_models(comparison, others or {}, (perturbation_key, cell_type_key), bar.track)
        plan = _Plan(
            groups, seeds, n_components, with_baselines, tuple(extra_baselines), vectors, beside, tables, bar.track
        )
        records = _run(comparison, plan)
    settings = {**keys, "suite": suite, "seeds": list(seeds), "n_components": n_components}
    if extra_baselines:
        settings["extra_baselines"] = list(extra_baselines)
    if features is not None:
        settings["features"] = str(features)
    if others:
        settings["others"] = list(others)
    return EvaluationResult(to_frame(records), comparison, _stamp(comparison, settings, time.perf_counter() - started))


def groups_of(suite: str) -> tuple[str, ...]:
    """The groups of metrics of a suite, or of several that commas separate, in the order of "full".

    Raises:
        EvaeError: an unknown suite, or vcc2026 beside others.
    """
    names = [name.strip() for name in suite.split(",")]
    for name in names:
        if name not in SUITES:
            raise EvaeError(f"unknown suite '{name}'. {near_matches(name, list(SUITES))}")
    if len(names) > 1 and "vcc2026" in names:
        raise EvaeError("the suite vcc2026 has systems of its own; evaluate with it alone.")
    wanted = {group for name in names for group in SUITES[name]}
    return SUITES[suite] if len(names) == 1 else tuple(group for group in SUITES["full"] if group in wanted)


def _check(suite: str, seeds: Sequence[int]) -> None:
    groups = groups_of(suite)
    if not seeds:
        raise EvaeError("seeds is empty; give at least one seed, for example seeds=(0,).")
    if "cell-eval" in groups:
        require("cell_eval", f"the suite {suite}")


def check_extra_baselines(
    extra_baselines: Sequence[str], features: str | Path | None = None, suite: str = "robust"
) -> dict[str, np.ndarray] | None:
    """What `features` hold, by name; None without them.

    Raises:
        EvaeError: a baseline that is not known or whose library is not installed, a table that cannot be read, or a
            suite with baselines of its own.
    """
    if suite == "vcc2026" and (extra_baselines or features is not None):
        raise EvaeError("the suite vcc2026 has baselines of its own; leave out other baselines and features.")
    for name in extra_baselines:
        if name not in EXTRA_BASELINES:
            raise EvaeError(f"unknown baseline '{name}'. {near_matches(name, list(EXTRA_BASELINES))}")
        if name in _LIBRARIES:
            require(_LIBRARIES[name], f"the baseline {name}", extra=name)
    return None if features is None else read_vectors(features)


@dataclass(frozen=True)
class _Plan:
    groups: tuple[str, ...]
    seeds: Sequence[int]
    n_components: int
    with_baselines: bool
    extra_baselines: tuple[str, ...]
    features: dict[str, np.ndarray] | None
    others: list[System]
    cache: Path | None
    bar: Progress


def _run(comparison: Comparison, plan: _Plan) -> list[Record]:
    groups, seeds, n_components, bar = plan.groups, plan.seeds, plan.n_components, plan.bar
    with_baselines = plan.with_baselines and groups != SUITES["vcc2026"]  # which has its own
    systems = [model_system(comparison), *plan.others]
    systems += baselines(comparison, plan.features) if with_baselines else []
    names = bar(plan.extra_baselines, "training baselines") if plan.extra_baselines else ()
    for name in names:
        system = EXTRA_BASELINES[name](comparison, seeds[0])
        systems += [system] if system.pairs else []
        if not system.pairs:
            comparison.notes.append(f"the baseline {name} has no answer: training knows no evaluated perturbation")
    records: list[Record] = []
    if "paper" in groups:
        records += paper_protocol(comparison, systems, seeds[0], bar, n_components)
    if "robust" in groups:
        records += robust_protocol(comparison, systems, seeds, bar, n_components)
    if "equal depth" in groups:
        records += depth_protocol(comparison, seeds, bar, n_components)
    if "perturbation" in groups:
        records += perturbation_protocol(comparison, systems, seeds, bar, plan.cache)
    if "differential expression" in groups:
        records += de_protocol(comparison, systems, seeds[0], bar, plan.cache, "extended" in groups)
    if "extended" in groups:
        records += extended_protocol(comparison, systems, seeds, bar)
    if "cell-eval" in groups:
        records += cell_eval_protocol(comparison, bar, plan.cache)
    if "vcc2026" in groups:
        records += challenge_protocol(comparison, seeds, bar, plan.with_baselines)
    if "diversity" in groups:
        records += diversity_protocol(comparison, systems, seeds[0], bar)
    return records


def _stamp(comparison: Comparison, settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What a reader needs to run it again: settings, versions, hashes, sizes and notes."""
    training, sides = comparison.training, ("real", "predicted", "controls")
    return {
        "settings": settings,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _STAMPED}},
        "sha256": dict(zip(sides, in_threads(lambda name: getattr(comparison, name).digest(), sides), strict=True)),
        "n_cells": {
            **{name: len(getattr(comparison, name)) for name in sides},
            "train": 0 if training is None else sum(training.counts.values()),
        },
        "n_genes": len(comparison.genes),
        "n_pairs": len(comparison.pairs),
        "notes": comparison.notes,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
