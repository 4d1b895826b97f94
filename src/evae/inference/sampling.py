"""Draw the cells of a prediction: what the controls tell, and one random stream for every cell."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor

from evae.common.cluster import current_cluster
from evae.common.files import explain_disk_errors
from evae.common.progress import progress_bar
from evae.data.format import Pair
from evae.data.reading.anndata_counts import AnnDataCounts
from evae.data.reading.panel import over_panel
from evae.inference.checkpoint import Checkpoint
from evae.inference.drawn_counts import DrawnCounts
from evae.inference.spread import PairMeans
from evae.inference.treatments import batches_of, effect_of_treatment, treatments_asked
from evae.inference.workers import ModelPlace, draw_batch, draw_on_worker
from evae.models.contract_evae import look_up
from evae.models.randomness_evae import CellStreams

READ_BATCH = 512


@dataclass(frozen=True)
class ControlFacts:
    """What a prediction takes from control cells.

    Attributes:
        rows: cell type -> its controls.
        names: of the controls, str (controls,).
        library_size: total counts over the panel, float32 (controls,).
        latents: before quantization, (controls, latents, latent_width); None where the prior reads no controls.
        batches: ids of their experimental batches, int64 (controls,); None where no column names them.
        contexts: cell type -> mean tokenizer embedding of its controls, (embedding,); empty where the prior does not
            know cell types by context.
    """

    rows: dict[str, np.ndarray]
    names: np.ndarray
    library_size: np.ndarray
    latents: Tensor | None
    contexts: dict[str, Tensor]
    batches: np.ndarray | None = None

    def draw_sources(self, n_cells: Mapping[Pair, int], rng: np.random.Generator) -> np.ndarray:
        """A control for every cell to draw, pair by pair; with repetition only where there are fewer than cells."""
        pools = self.rows
        return np.concatenate([rng.choice(pools[c], n, replace=n > len(pools[c])) for (c, _), n in n_cells.items()])

    def more_sources(self, sources: np.ndarray, n_each: int, cell_types: np.ndarray, seed: int) -> np.ndarray:
        """`sources` (cells,), each with further controls of its cell type, (cells, n_each)."""
        further = self.draw_any(cell_types, n_each - 1, np.random.default_rng((seed, n_each)))
        return np.concatenate([sources[:, None], further], axis=1)

    def draw_any(self, cell_types: np.ndarray, n_each: int, rng: np.random.Generator) -> np.ndarray:
        """Controls of the cell types (cells,), each as likely at every draw, (cells, n_each)."""
        drawn = np.zeros((len(cell_types), n_each), dtype=np.int64)
        for name, pool in self.rows.items():
            of_type = cell_types == name
            drawn[of_type] = rng.choice(pool, (int(of_type.sum()), n_each))
        return drawn


def panel_batches(
    processor: Any,
    adata: ad.AnnData,
    *,
    device: torch.device,
    title: str = "",
    progress: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Sparse batches of all cells, in order, on the device."""
    source = AnnDataCounts(adata)
    columns = processor.panel_index(source.gene_columns)
    with progress_bar(progress) as bar:
        advance = bar.start(title, adata.n_obs)
        for _, counts in source.blocks(READ_BATCH):
            batch = processor(over_panel(counts, columns, len(processor.genes)))
            yield {name: values.to(device) for name, values in batch.items()}
            advance(counts.shape[0])


@torch.inference_mode()
def read_control_facts(
    checkpoint: Checkpoint,
    controls: ad.AnnData,
    labels: np.ndarray,
    *,
    device: torch.device,
    batch_key: str | None = None,
) -> ControlFacts:
    """What the prior wants of controls whose cell types are `labels` (cells,); `batch_key` names their batch."""
    batches = batches_of(checkpoint, controls.obs, batch_key)
    sizes, latents, embedded = [], [], []
    tokenizer = checkpoint.tokenizer
    for batch in panel_batches(checkpoint.processor, controls, device=device):
        sizes.append(batch["library_size"].cpu().numpy())
        if reads_controls(checkpoint):
            latents.append(tokenizer.tokens_and_latents(batch["counts"], batch["gene_ids"])[1].float().cpu())
        if knows_by_context(checkpoint):
            embedded.append(tokenizer.embed(batch["counts"], batch["gene_ids"]).float().cpu())
    rows = {str(name): np.flatnonzero(labels == name) for name in pd.unique(labels)}
    contexts = {name: torch.cat(embedded)[where].mean(0) for name, where in rows.items()} if embedded else {}
    names = np.array([str(name) for name in controls.obs_names], dtype=object)
    return ControlFacts(rows, names, np.concatenate(sizes), torch.cat(latents) if latents else None, contexts, batches)


def reads_controls(checkpoint: Checkpoint) -> bool:
    """Whether the prior reads control cells themselves: source cells, or effects on their latents."""
    return bool(source_cells(checkpoint)) or takes_effects(checkpoint)


def source_cells(checkpoint: Checkpoint) -> int:
    """How many control cells the prior reads for every cell; 0 for none."""
    return int(getattr(checkpoint.model.config, "source_cells", 0))


def takes_effects(checkpoint: Checkpoint) -> bool:
    """Whether the prior is told the known effect of a perturbation."""
    return bool(getattr(checkpoint.model.config, "condition_on_effect", False))


def knows_by_context(checkpoint: Checkpoint) -> bool:
    """Whether the prior knows a cell type by its control cells, and not by its name."""
    return bool(getattr(checkpoint.model.config, "cell_type_context", False))


def conditions_of(
    checkpoint: Checkpoint,
    obs: pd.DataFrame,
    found: ControlFacts | None,
    sources: np.ndarray | None,
    seed: int,
    shifts: Mapping[Pair, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The arguments of the prior for the cells that `obs` plans.

    Args:
        checkpoint: a prior.
        obs: one row a cell, with `perturbation`, `cell_type` and `library_size`.
        found: what the controls tell; None without controls.
        sources: control of every cell, (cells,); None without controls.
        seed: of the further controls of a prompt.
        shifts: (cell type, perturbation) -> effects that the user knows, in the place of those that training found.
            Their perturbations may be new.

    Raises:
        EvaeError: a perturbation or a cell type that the prior was not trained for.
    """
    processor, n_sources = checkpoint.processor, source_cells(checkpoint)
    shifts = shifts or {}
    told = {name for _, name in shifts}
    asked = _perturbations(checkpoint, obs["perturbation"].tolist(), told)
    if found is not None and found.batches is not None and sources is not None:
        asked["batch_ids"] = torch.from_numpy(found.batches[sources])
    kinds = [str(name) for name in obs["cell_type"].cat.categories]
    which = torch.from_numpy(obs["cell_type"].cat.codes.to_numpy(dtype=np.int64))
    if found is not None and found.contexts:
        asked["context"] = torch.stack([found.contexts[name] for name in kinds])[which]
    elif reads_controls(checkpoint):
        asked["cell_type_ids"] = _named_where_seen(processor, kinds)[which]
    else:
        asked["cell_type_ids"] = torch.from_numpy(look_up(kinds, processor.cell_types, "cell type"))[which]
    asked["library_size"] = torch.from_numpy(obs["library_size"].to_numpy(dtype=np.float32))
    if n_sources and found is not None and sources is not None and found.latents is not None:
        several = found.more_sources(sources, n_sources, obs["cell_type"].to_numpy(), seed)
        asked["source_latents"] = found.latents[several]
        asked["source_library_size"] = torch.from_numpy(found.library_size[several])
    if takes_effects(checkpoint):
        pairs = obs.groupby(["cell_type", "perturbation"], observed=True, sort=False).indices
        place = {kind: row for row, kind in enumerate(processor.cell_types)}
        effects = torch.empty(len(obs), checkpoint.model.condition.effect.width)
        table, names = checkpoint.model.condition.effect.effects().cpu(), processor.names()  # once for all
        rows_of, parts = rows_by_parts(processor), names.parts(obs["perturbation"].unique())
        for (cell_type, perturbation), rows in pairs.items():
            pair = str(cell_type), str(perturbation)
            shift = (
                shifts[pair]
                if pair in shifts
                else known_effect(names, table[place.get(pair[0], len(place))], rows_of, parts[pair[1]])
            )
            effects[torch.from_numpy(rows)] = shift
        asked["effect"] = effects
    return asked


def _perturbations(checkpoint: Checkpoint, names: Sequence[str], told: Collection[str]) -> dict[str, Tensor]:
    """Ids of perturbations and their treatments; those of the null condition for what is `told` and not known."""
    processor = checkpoint.processor
    known = processor.names().known
    unknown = {name for name in told if any(part not in known for part in processor.parts(name))}
    given = [processor.control if name in unknown else name for name in names]
    asked = {"perturbation_ids": processor.perturbation_ids(given), **treatments_asked(checkpoint, given)}
    if unknown:
        ids, none = asked["perturbation_ids"], len(processor.known_units())
        rows = torch.tensor([name in unknown for name in names])
        ids[rows] = torch.tensor([none, *[-1] * (ids.shape[1] - 1)]) if ids.dim() == 2 else none
    return asked


def _named_where_seen(processor: Any, names: Sequence[str]) -> Tensor:
    """Ids of cell types; that of no name where training saw no perturbed cell of the type, whose name then says only
    that its cells are controls."""
    seen = processor.training_pairs or {}
    perturbed = {name for name, perturbations in seen.items() if set(perturbations) - {processor.control}}
    unnamed = len(processor.cell_types)
    known = {name: number for number, name in enumerate(processor.cell_types) if name in perturbed}
    return torch.tensor([known.get(name, unnamed) for name in names])


def known_effect(names: Any, effects: Tensor, rows: dict[frozenset[str], int], parts: Sequence[str]) -> Tensor:
    """Shift of the latents that a perturbation makes in the other cell types, (latents * latent_width,).

    Of a combination that training did not see, the sum of its parts' shifts; of a dose between known ones, what lies
    between their shifts; NaN where nothing is known.

    Args:
        names: `PerturbationNames` of the model.
        effects: of the prior, as the cell type is told them, (perturbations, values).
        rows: from `rows_by_parts`.
        parts: of the perturbation.
    """
    row = rows.get(frozenset(parts))
    if row is not None and not effects[row].isnan().any():
        return effects[row]
    return torch.stack([effect_of_treatment(names, effects, rows, part) for part in parts]).sum(0)


def rows_by_parts(processor: Any) -> dict[frozenset[str], int]:
    """Parts of a training perturbation -> its row: `B+A` is `A+B`, and `A+control` is `A`."""
    rows: dict[frozenset[str], int] = {}
    parts = processor.parts_of_all(processor.perturbations)
    for row, name in enumerate(processor.perturbations):
        rows.setdefault(frozenset(parts[name]), row)
    return rows


def draw_cells(
    checkpoint: Checkpoint,
    asked: Mapping[str, Tensor],
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
    progress: bool,
    sampling: Mapping[str, Any],
    means: PairMeans | None = None,
) -> sp.csr_matrix:
    """Raw counts (cells, genes) of the cells with the conditions `asked`, see `conditions_of`.

    Those of many cells lie in temporary files, see `DrawnCounts`. With `means` they are independent molecules, and it
    gets the means that they shall have, see `evae.inference.spread`.
    """
    n_cells = len(asked["library_size"])
    streams, found = CellStreams.spawn(torch.Generator().manual_seed(seed), n_cells), DrawnCounts()
    slices = [slice(start, start + batch_size) for start in range(0, n_cells, batch_size)]
    # a stream a cell: cells do not depend on their batch
    batches = (
        (
            {name: values[rows] for name, values in asked.items()},
            streams[rows],
            sampling,
            None if means is None else means.pairs[rows],
        )
        for rows in slices
    )
    cluster = current_cluster()
    drawn: Iterable[tuple[sp.csr_matrix, dict[int, np.ndarray]]]
    if cluster is None:
        drawn = (draw_batch(checkpoint.model, device, *batch) for batch in batches)
    else:
        place = ModelPlace.of(checkpoint, device)
        drawn = cluster.in_order(draw_on_worker, ((place, *batch) for batch in batches))
    with progress_bar(progress) as bar, explain_disk_errors("the temporary folder", "set TMPDIR to a larger disk"):
        advance = bar.start("predicting cells", n_cells)
        for counts, sums in drawn:
            found.append(counts)
            if means is not None:
                means.add(sums)
            advance(counts.shape[0])
    return found.matrix()
