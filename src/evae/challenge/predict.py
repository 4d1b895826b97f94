"""Predict an entry: for every context and target gene the asked number of cells, from controls of the context.

Each predicted cell stands for one control cell of its context: it takes that cell's library size and, for genes outside
the model's panel, its counts. Nothing of a context's perturbed cells is used. One context's controls and a few thousand
predicted cells are in memory at a time.

A target gene that the model has no value for is refused, unless something is to stand in for it: the control cells
themselves, or control cells shifted by given fold changes.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from evae.challenge.entry_file import BYTES_STORED
from evae.challenge.lists import MAX_COUNTS, MAX_STORED, EntryPlan
from evae.challenge.sources import Controls
from evae.common.messages import number_of
from evae.common.mixed_poisson import dispersions
from evae.common.progress import progress_bar
from evae.evaluation.systems.transfer import MAX_FOLD, shifted_counts
from evae.inference.checkpoint import Checkpoint
from evae.inference.decoder_labels import told_to_decoder
from evae.inference.effects import effects_on_controls, log_fold_changes
from evae.inference.library import choose_library_sizes
from evae.inference.pipeline import Pipeline
from evae.inference.request import planned_cells
from evae.inference.sampling import (
    conditions_of,
    draw_cells,
    knows_by_context,
    read_control_facts,
    reads_controls,
    takes_effects,
)
from evae.inference.spread import PairMeans
from evae.inference.totals import with_means
from evae.inference.transfer import EffectTransfer
from evae.models.contract_evae import EvaeError, near_matches
from evae.models.genes_evae import GeneColumns, match_genes

BLOCK_CELLS = 4_000
PACKED_SHARE = 0.35  # of the h5ad file that its packed form takes at most
FIRST_CELLS = 2_000  # of a context that the estimate of the size looks at


@dataclass(frozen=True)
class EntryPredictor:
    """A model and what it predicts from, checked before anything is drawn.

    Attributes:
        pipe: a prior.
        plan: what the entry holds.
        controls: of all contexts.
        cell_type: of the model's, that stands for every context; None where the model knows contexts themselves.
        effects: log2 fold changes, a row a target gene, a column a gene of the entry. A prior with
            `condition_on_effect` is told them; else they shift control cells, for targets that the model does not know.
        fill_with_controls: whether control cells stand for targets of which nothing is known.
        seed, batch_size, sampling: as in `Pipeline.predict`.
    """

    pipe: Pipeline
    plan: EntryPlan
    controls: Controls
    cell_type: str | None = None
    effects: pd.DataFrame | None = None
    fill_with_controls: bool = False
    seed: int = 0
    batch_size: int = 256
    sampling: dict[str, Any] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Checkpoint:
        return self.pipe.checkpoint

    @cached_property
    def told(self) -> dict[str, np.ndarray]:
        """Target gene -> log2 fold changes over the model's panel, where the model is told them."""
        if self.effects is None or not takes_effects(self.checkpoint):
            return {}
        return log_fold_changes(self.effects, self.pipe.processor)

    def without_value(self) -> list[str]:
        """The target genes that the model has no value for."""
        unknown = []
        for target in [t for t in self.plan.targets if t not in self.told]:
            try:
                self.pipe.processor.perturbation_ids([target])
            except EvaeError:
                unknown.append(target)
        return unknown

    def check(self, out: Path) -> dict[str, list[str]]:
        """Check all limits that can be known before an hour is spent.

        Returns:
            target genes that something stands in for: "given effects" and "control cells".

        Raises:
            EvaeError: a target or a context that the model does not know, too many counts, or too little space.
        """
        if not self.checkpoint.is_prior:
            raise EvaeError(f"{self.checkpoint.name} is a tokenizer, which does not predict; give a prior.")
        if self.batch_size < 1:
            raise EvaeError(f"the batch size is {self.batch_size}; give at least 1.")
        self._check_contexts()
        stand_ins = self._stand_ins()
        self._check_size(out)
        self._check_drawing()
        return stand_ins

    def _check_contexts(self) -> None:
        self.pipe.processor.panel_index(GeneColumns.of_panel(self.plan.genes, None))  # raises where they are too few
        known = self.pipe.processor.cell_types
        missing = [c for c in self.plan.contexts if c not in known]
        if missing and self.cell_type is None and not zero_shot(self.checkpoint):
            raise EvaeError(
                f"the model knows cell types by name, and context {missing[0]} is none of them; train it with "
                f"model.source_cells=1, or let one stand for it with --cell-type ({', '.join(known[:3])})."
            )
        if self.cell_type is not None and self.cell_type not in known:
            raise EvaeError(f"the model has no cell type '{self.cell_type}'. {near_matches(self.cell_type, known)}")

    def _check_size(self, out: Path) -> None:
        stored = 0.0
        for context in self.plan.contexts:
            counts = self.controls.read(context, FIRST_CELLS)[1]
            worst = counts.sum(axis=1).max()
            if worst > MAX_COUNTS:
                raise EvaeError(f"a control cell of {context} has {worst:,.0f} counts, and a cell of an entry may have "
                                f"{MAX_COUNTS:,}; leave such cells out.")  # fmt: skip
            stored += counts.nnz / counts.shape[0] * sum(n for (c, _), n in self.plan.cells.items() if c == context)
        if stored > MAX_STORED:
            raise EvaeError(f"at the controls' density the entry would have {stored:,.0f} stored counts, and the "
                            f"challenge takes {MAX_STORED:,}; ask for fewer cells.")  # fmt: skip
        needed = stored * BYTES_STORED * (1.0 if out.suffix == ".h5ad" else 1 + PACKED_SHARE)
        free = shutil.disk_usage(out.resolve().parent).free
        if needed > free:
            raise EvaeError(f"the entry needs some {needed / 1e9:.0f} GB beside {out}, where {free / 1e9:.0f} GB are "
                            "free; name another place with --out.")  # fmt: skip

    def _check_drawing(self) -> None:
        """Draw one cell, so that what the model refuses is refused now."""
        unknown = set(self.without_value())
        pair = next((pair for pair in self.plan.cells if pair[1] not in unknown), None)
        if pair is not None:
            source = _ContextSource(self, pair[0], FIRST_CELLS)
            source.draw({pair[1]: 1}, unknown, np.random.default_rng(self.seed))

    def _stand_ins(self) -> dict[str, list[str]]:
        unknown = self.without_value()
        given = set() if self.effects is None else set(self.effects.index)
        found = {
            "given effects": [t for t in unknown if t in given],
            "control cells": [t for t in unknown if t not in given],
        }
        if (nothing := found["control cells"]) and not self.fill_with_controls:
            raise EvaeError(
                f"the model has no value for {len(nothing)} of the {number_of(len(self.plan.targets), 'target gene')} "
                f"({', '.join(nothing[:5])}{', ...' if len(nothing) > 5 else ''}); give a model with features for "
                "them, log2 fold changes with --effects, or let control cells stand for them with --missing controls."
            )
        return found

    def blocks(self, progress: bool = True) -> Iterator[sp.csr_matrix]:
        """The rows of the entry in order, some thousand at a time, (cells, genes)."""
        unknown = set(self.without_value())
        with progress_bar(progress) as bar:
            advance = bar.start("predicting cells", self.plan.n_cells)
            for number, context in enumerate(self.plan.contexts):
                source = _ContextSource(self, context)
                for i, targets in enumerate(_portions(self.plan, context)):
                    rng = np.random.default_rng([self.seed, number, i])
                    yield (block := source.draw(targets, unknown, rng))
                    advance(block.shape[0])


def zero_shot(checkpoint: Checkpoint) -> bool:
    """Whether the prior predicts for cell types that it never saw, from their controls."""
    return knows_by_context(checkpoint) or reads_controls(checkpoint)


class _ContextSource:
    """The controls of one context (at most `limit` of them), and the model at work on them."""

    def __init__(self, predictor: EntryPredictor, context: str, limit: int | None = None) -> None:
        self.predictor, self.context = predictor, context
        cells, self.counts = predictor.controls.read(context, limit)
        processor = predictor.pipe.processor
        self.name = predictor.cell_type or context
        labels = np.full(cells.n_obs, self.name, dtype=object)
        prior, where = predictor.checkpoint, predictor.pipe.device
        self.facts = read_control_facts(prior, cells, labels, device=where)
        pairs = [(self.name, t) for c, t in predictor.plan.cells if c == context]
        self.shifts = effects_on_controls(
            prior, cells, self.facts, predictor.told, pairs, device=where, seed=predictor.seed
        )
        self.transfer = None if prior.effects is None else EffectTransfer.of(prior, cells, self.facts, predictor.told)
        panel = GeneColumns.of_panel(processor.genes, processor.ensembl_ids)
        place = match_genes(panel, GeneColumns.of_panel(predictor.plan.genes, None))  # (panel,)
        self.places, self.inside = place, place >= 0
        self.outside = np.ones(len(predictor.plan.genes), dtype=np.float32)
        self.outside[place[self.inside]] = 0.0
        self.spread = dispersions(self.counts) if predictor.effects is not None else None

    def draw(self, targets: dict[str, int], unknown: set[str], rng: np.random.Generator) -> sp.csr_matrix:
        """Cells of some targets, in their order."""
        n = self.counts.shape[0]
        rows = {t: rng.choice(n, k, replace=k > n) for t, k in targets.items()}
        known = {t: k for t, k in targets.items() if t not in unknown}
        drawn = iter(self._model(known, [rows[t] for t in known], int(rng.integers(2**31))))
        return sp.vstack(
            [self._stand_in(t, rows[t], rng) if t in unknown else next(drawn) for t in targets], format="csr"
        )

    def _model(self, targets: dict[str, int], rows: Sequence[np.ndarray], seed: int) -> list[sp.csr_matrix]:
        if not targets:
            return []
        it = self.predictor
        obs = planned_cells({(self.name, t): k for t, k in targets.items()}, it.pipe.processor)
        chosen, rng = np.concatenate(rows), np.random.default_rng((seed, 1))
        obs["library_size"] = choose_library_sizes(None, it.pipe.processor, obs, self.facts, chosen, rng)[0]
        conditions = conditions_of(it.checkpoint, obs, self.facts, chosen, seed, self.shifts)
        conditions |= told_to_decoder(it.checkpoint, obs)
        means = PairMeans.of(it.checkpoint.model, obs)
        panel = draw_cells(
            it.checkpoint, conditions, seed=seed, batch_size=it.batch_size, device=it.pipe.device,
            progress=False, sampling=it.sampling, means=means,
        )  # fmt: skip
        if self.transfer is not None:
            panel, _ = self.transfer.move(panel, obs, seed, means=means)
        elif means is not None:
            panel = with_means(panel, obs, means.means(), seed)
        genes = len(it.plan.genes)
        to_entry = sp.csr_matrix(
            (np.ones(self.inside.sum()), (np.flatnonzero(self.inside), self.places[self.inside])),
            shape=(panel.shape[1], genes),
        )
        whole = sp.csr_matrix(panel @ to_entry + self.counts[chosen] @ sp.diags(self.outside), dtype=np.float32)
        whole.eliminate_zeros()
        return [whole[a:b] for a, b in pairwise(np.cumsum([0, *targets.values()]))]

    def _stand_in(self, target: str, rows: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
        effects, controls = self.predictor.effects, self.counts[rows]
        if effects is None or target not in effects.index:
            return controls
        shift = effects.loc[target].to_numpy(dtype=float)
        assert self.spread is not None
        return shifted_counts(controls, np.exp2(shift).clip(1 / MAX_FOLD, MAX_FOLD), self.spread, rng)


def _portions(plan: EntryPlan, context: str) -> Iterator[dict[str, int]]:
    """The targets of a context with their numbers of cells, some thousand cells at a time."""
    held: dict[str, int] = {}
    for (c, target), n in plan.cells.items():
        if c != context:
            continue
        held[target] = n
        if sum(held.values()) >= BLOCK_CELLS:
            yield held
            held = {}
    if held:
        yield held
