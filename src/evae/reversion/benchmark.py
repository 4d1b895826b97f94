"""The reversion benchmark: one call from a screen and its embeddings to rankings, enrichment and separation."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anndata as ad
import numpy as np

from evae.common.progress import Bar, progress_bar
from evae.data.reading.anndata_counts import Counts, open_counts
from evae.inference.checkpoint import load_checkpoint
from evae.inference.embedding import CellEncoder
from evae.models.contract_evae import EvaeError, check_unique, near_matches
from evae.reversion.baselines import BASELINES, Expression, differential_profiles, pca, umap
from evae.reversion.enrichment import agreement, enrichment
from evae.reversion.names import ScreenNames
from evae.reversion.numbers import MethodResult, stamp
from evae.reversion.ranking import control_distances, null_aucs, rank_targets
from evae.reversion.reference import read_reference
from evae.reversion.result import ReversionResult
from evae.reversion.screen import Screen
from evae.reversion.sources import Blocks, Embedding, open_embedding
from evae.reversion.sums import N_SHUFFLES, Place, ScreenSums


def run(
    data: ad.AnnData | str | Path,
    names: ScreenNames,
    *,
    model: Any = None,
    kinds: Sequence[str] = ("latents",),
    embeddings: Mapping[str, Any] | None = None,
    baselines: Sequence[str] = (),
    reference: str | Path | Sequence[str] | None = None,
    layer: str | None = None,
    min_cells: int = 1,
    n_permutations: int = 10_000,
    n_bootstrap: int = 2_000,
    n_shuffles: int = N_SHUFFLES,
    n_components: int = 50,
    umap_components: int = 2,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> ReversionResult:
    """Rank the targets of a screen by how far their knock-down reverts the stress, in one or many embeddings.

    The cells are read in a stream; memory follows the groups, not the cells.

    Args:
        data: an AnnData or h5ad file of raw counts. Where only precomputed embeddings are compared, the counts are
            not read.
        names: what the screen's columns and labels are called; `PRESETS` holds the published one.
        model: folder or Hub id of a tokenizer or prior, a loaded checkpoint, or an `evae.pipeline`; None for none.
        kinds: of the model's embeddings: "latents", "pooled", "codes".
        embeddings: precomputed ones by name: a file, an obsm key of the screen, or an array (see `sources`).
        baselines: of "pca", "umap" and "de".
        reference: a ranking to compare with, best first: names, or a text file with one a line.
        layer: layer of raw counts; X if None.
        min_cells: groups of fewer cells have no distance.
        n_permutations: for the p-values of the AUCs.
        n_bootstrap: for their intervals.
        n_shuffles: of the labels, for the Calinski-Harabasz ratios and the null screens.
        n_components: principal components of the PCA baseline, and those that UMAP sees.
        umap_components: dimensions of the UMAP baseline.
        seed: of everything random.
        device: where the model computes; a GPU if there is one, if None.
        progress: show a progress bar.

    Returns:
        A `ReversionResult`: `table()`, `rankings()`, `print()`, `report(folder)`.

    Raises:
        EvaeError: nothing to compare, a name that the screen does not have, an anchor without cells, embeddings of
            other cells, genes that do not cover the model's panel.
    """
    started = time.monotonic()
    _check(model, embeddings or {}, baselines, kinds)
    order = read_reference(reference)
    with ExitStack() as stack:
        source = open_counts(data, layer, Path(stack.enter_context(TemporaryDirectory(prefix="evae-"))))
        stack.callback(source.close)
        screen = Screen.read(source, names)
        bar = stack.enter_context(progress_bar(progress))
        opened = [] if model is None else _encoded(model, source, kinds, device)
        opened += [open_embedding(name, where, source) for name, where in (embeddings or {}).items()]
        place = partial(place_groups, screen=screen, bar=bar, n_shuffles=n_shuffles, seed=seed)
        expression = Expression.of(source, screen, seed=seed) if baselines else None
        places = [place(embedding) for embedding in opened]
        if expression is not None:
            places += [_baseline(name, expression, place, n_components, umap_components) for name in baselines]
    chance = {"n_permutations": n_permutations, "n_bootstrap": n_bootstrap, "seed": seed}
    methods = {place.name: _judge(place, screen, order, min_cells, chance) for place in places}
    settings = {"min_cells": min_cells, "n_shuffles": n_shuffles, "n_components": n_components} | chance
    where = "AnnData in memory" if isinstance(data, ad.AnnData) else str(data)
    return ReversionResult(methods, names, order, stamp(screen, where, settings, time.monotonic() - started))


def place_groups(
    embedding: Embedding,
    screen: Screen,
    bar: Bar,
    n_shuffles: int = N_SHUFFLES,
    seed: int = 0,
    since: float | None = None,
) -> Place:
    """Read an embedding once and find where the groups of the screen lie in it."""
    since = time.monotonic() if since is None else since
    sums = ScreenSums(screen, embedding.width, n_shuffles, seed)
    advance = bar.start(embedding.name, embedding.n_cells)
    for rows, vectors in embedding.blocks():
        sums.add(rows, vectors)
        advance(len(rows))
    return Place(
        embedding.name,
        sums.centroids(),
        sums.sizes,
        sums.null_distances(),
        sums.separation(),
        embedding.width,
        int((screen.codes >= 0).sum() - sums.sizes.sum()),
        embedding.about,
        time.monotonic() - since,
    )


def _baseline(
    name: str, expression: Expression, place: Callable[..., Place], n_components: int, umap_components: int
) -> Place:
    """Where the groups lie in a baseline's embedding, which is computed here."""
    if name == "de":
        return differential_profiles(expression)
    started = time.monotonic()
    built = pca(expression, n_components) if name == "pca" else umap(expression, umap_components, n_components)
    return place(built, since=started)


def _check(model: Any, embeddings: Mapping[str, Any], baselines: Sequence[str], kinds: Sequence[str]) -> None:
    for baseline in baselines:
        if baseline not in BASELINES:
            raise EvaeError(f"there is no baseline '{baseline}'. {near_matches(baseline, BASELINES)}")
    names = [*([f"evae {kind}" for kind in kinds] if model is not None else []), *embeddings, *baselines]
    if not names:
        raise EvaeError("there is nothing to compare; give a model, an embedding or a baseline.")
    check_unique(names, "method")


def _encoded(model: Any, source: Counts, kinds: Sequence[str], device: str | None) -> list[Embedding]:
    """The model's embeddings, computed as they are read."""
    checkpoint = load_checkpoint(model) if isinstance(model, str | Path) else getattr(model, "checkpoint", model)
    opened = []
    for kind in kinds:
        encoder = CellEncoder.align(checkpoint, source, kind, device)
        about = f"{checkpoint.name}, gene coverage {encoder.coverage:.1%}"
        opened.append(Embedding(f"evae {kind}", encoder.width, source.n_cells, _blocks(encoder, source), about))
    return opened


def _blocks(encoder: CellEncoder, source: Counts) -> Callable[[], Blocks]:
    def blocks() -> Blocks:
        for start, vectors in encoder.blocks(source):
            yield np.arange(start, start + len(vectors)), vectors

    return blocks


def _judge(
    place: Place, screen: Screen, order: list[str] | None, min_cells: int, chance: dict[str, int]
) -> MethodResult:
    ranking = rank_targets(screen, place.centroids, place.sizes, min_cells)
    positive = ranking["positive"].to_numpy(dtype=bool)
    ranked = [str(t) for t in ranking.index[ranking["rank"].notna()]]
    return MethodResult(
        place,
        ranking,
        enrichment(ranking["distance"].to_numpy(), positive, **chance),
        enrichment(-ranking["selectivity"].to_numpy(), positive, **chance),
        control_distances(screen, place.centroids),
        agreement(ranked, order) if order else {},
        null_aucs(screen, place.null_distances, place.sizes, min_cells),
    )
