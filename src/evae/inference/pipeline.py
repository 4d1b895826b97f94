"""AnnData in, AnnData out: predict perturbed cells and embed cells with a trained checkpoint.

pipe = evae.pipeline("evae/replogle-ar")
predicted = pipe.predict(controls, perturbation="STAT1", n_cells=500)
pipe.embed(cells)                                      # adds obsm["X_evae"]
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd
import torch

from evae.data.format import Pair
from evae.inference.checkpoint import Checkpoint, load_checkpoint
from evae.inference.devices import choose_device
from evae.inference.loaded_model import LoadedModel
from evae.inference.predicted_effects import KEY, Compared, effects_in
from evae.inference.prediction import Request, change_cells, predict_cells
from evae.inference.ranking import rank_cells
from evae.inference.scoring import Scoring, score_cells
from evae.models.contract_evae import EvaeError


def pipeline(
    path_or_id: str | Path, device: str | torch.device | None = None, revision: str | None = None
) -> "Pipeline":
    """Load a checkpoint for use on AnnData.

    Args:
        path_or_id: a folder written by training, a Hub id, or "example" (see `evae.example_controls`).
        device: where to compute; a GPU if there is one, else the CPU, if None.
        revision: branch, tag or commit of a Hub id.

    Returns:
        A `Pipeline`.

    Raises:
        EvaeError: nothing there, a file that is missing or damaged, or a device that cannot be used.
    """
    place = choose_device(device)  # before the weights are read
    return Pipeline(load_checkpoint(path_or_id, revision), place)


class Pipeline(LoadedModel):
    """A loaded checkpoint that reads and writes AnnData; made by `evae.pipeline`.

    Attributes:
        model: the tokenizer or the prior, in evaluation mode.
        processor: its `EvaeProcessor`: gene panel, vocabularies, control.
        device: where it computes.
    """

    def predict(
        self,
        controls: ad.AnnData | str | Path | None,
        perturbation: str | Sequence[str] | None = None,
        cell_type: str | Sequence[str] | None = None,
        n_cells: int | Mapping[Pair, int] | None = None,
        *,
        dose: float | Sequence[float] | None = None,
        dose_unit: str | None = None,
        time: float | Sequence[float] | None = None,
        requests: pd.DataFrame | str | Path | None = None,
        effects: pd.DataFrame | str | Path | None = None,
        match_effects: bool = False,
        effect_transfer: float | None = None,
        library_size: str | Any | None = None,
        seed: int = 0,
        batch_size: int = 256,
        cell_type_key: str | None = "cell_type",
        perturbation_key: str = "perturbation",
        batch_key: str | None = None,
        control: str | None = None,
        layer: str | None = None,
        progress: bool = True,
        **sampling: Any,
    ) -> ad.AnnData:
        """Draw cells as they would be after a perturbation.

        Args:
            controls: unperturbed cells, raw counts, or the path of their h5ad file. Every predicted cell starts from
                one of the controls of its cell type (with repetition only if there are fewer controls than cells): a
                prior with source cells reads it, and the library size follows from its. A prior that reads controls
                takes cell types that it never saw. None takes library sizes from the training cells; then give
                `cell_type` and `n_cells`.
            perturbation: one name or several; `A+B` is both at once, where training saw such combinations.
            cell_type: one name or several. None predicts for every cell type in
                `controls.obs[cell_type_key]`; where controls have that column, only those of the given
                cell types are used.
            n_cells: cells for every pair of cell type and perturbation; as many as its cell type has controls if None.
                For chosen pairs, a mapping from (cell type, perturbation) to a number, and no `perturbation` and
                `cell_type`.
            dose: one or several, each with every perturbation, where the model was trained on doses; also doses between
                those of training. In `dose_unit`, which is that of the perturbation's known doses if None. Of
                a combination, the parts get it that were seen with doses.
            time: likewise, hours after treatment.
            requests: in place of all these a table, or its csv, tsv or parquet file, one row a pair, with the columns
                `perturbation`, `cell_type` (left out: every cell type of the controls), `n_cells` (left out or
                empty: as many as the cell type has controls), `dose`, `dose_unit` and `time`.
            effects: log2 fold changes that you know of the perturbations, genes by perturbations or the other way
                round, as a table or its csv, tsv or parquet file; for a prior with `condition_on_effect`. They take the
                place of what training found, and may be of perturbations that it never saw.
            match_effects: change the drawn cells, as whole counts, until the pseudobulk of each pair has the fold
                changes of `effects` over that of its controls (`evae.inference.matching` says how). Any prior will do.
                A perturbation that it knows is drawn as it knows it; it is told the effects of others only.
            effect_transfer: how far the mean of the drawn cells is moved towards the effect that training cells tell: 0
                leaves them as drawn, 1 gives them that mean. Of a perturbation that some cell type of training has, it
                is the effect there, those most like the controls first; of a combination the sum of its parts; of a
                perturbation known by its feature vector alone, what the vectors tell. None finds how far for each
                pair, see `evae.inference.transfer`, where the model keeps effects. Pairs of fewer than 20 cells, and
                perturbations whose effects are given, stay as drawn.
            library_size: total counts of the predicted cells: "predicted" from the control's, the perturbation and the
                cell type, those of the "controls", some of the "training" cells, or numbers (cells,). None takes what
                training found best on left-out pairs.
            seed: the same seed (with the same inputs) gives the same cells, whatever the batch size.
            batch_size: cells drawn at once.
            cell_type_key: obs column of the controls' cell types; None if all are of the one `cell_type`.
            perturbation_key: obs column of the perturbation. Where the controls have it, only cells with the label
                of controls are taken; a warning says how many were left out.
            batch_key: obs column of the controls' experimental batch, or several with commas, for a prior with
                `condition_on_batch`; a predicted cell is of the batch of its control. Unknown batches if None.
            control: that label; the model's if None.
            layer: the layer of `controls` that holds raw counts, or "raw"; X if None.
            progress: show a progress bar.
            **sampling: options of the prior's `sample`, for example `guidance_scale=2`.

        Returns:
            AnnData. X: raw counts over the model's gene panel, CSR float32, (cells, genes). obs: `perturbation`,
            `cell_type`, `support` (what training saw of the pair: "seen together", "seen apart", "seen otherwise",
            which is with another dose, time or kind, or "unseen"), `library_size` (the total counts the cell was drawn
            for), and `agent`, `dose` and `time` of a model that knows doses. var: genes are named as the controls name
            them. Where the controls call the label columns otherwise, obs has them under those names too.
            uns["evae"]: model, seed, share of the panel that the controls cover, versions, with `match_effects` how
            close it came, with `effect_transfer` its weight and how many pairs were moved.

        Raises:
            EvaeError: the checkpoint is a tokenizer only, a name or an option that it does not know, controls
                that are not raw counts or not controls, or too little gene coverage.
        """
        request = Request(
            perturbation=perturbation, cell_type=cell_type, n_cells=n_cells, dose=dose, dose_unit=dose_unit, time=time,
            requests=requests, effects=effects, batch_key=batch_key, match_effects=match_effects,
            effect_transfer=effect_transfer, library_size=library_size, seed=seed, batch_size=batch_size,
            cell_type_key=cell_type_key, perturbation_key=perturbation_key, control=control, layer=layer,
            progress=progress, sampling=sampling,
        )  # fmt: skip
        return predict_cells(self._prior(batch_size), controls, request, self.device)

    def counterfactual(
        self, controls: ad.AnnData | str | Path, perturbation: str, cell_type: str | None = None, **options: Any
    ) -> ad.AnnData:
        """Draw each control cell as it would be after a perturbation: the same cells in the same order.

        Args:
            controls: as in `predict`.
            perturbation: one name.
            cell_type: one name, where the controls have no column of cell types.
            **options: the other arguments of `predict`, but for `n_cells`. `effect_transfer` is 0 if left out: it
                sets the mean of all cells, and what becomes of one shall not depend on the others.

        Returns:
            AnnData as from `predict`, with the names of the controls in the same order.

        Raises:
            EvaeError: as `predict` does, and for a prior that reads no source cells.
        """
        request = Request.of(perturbation, cell_type, options)
        return change_cells(self._prior(request.batch_size), controls, request, self.device)

    def effects(
        self,
        predicted: ad.AnnData | str | Path,
        controls: ad.AnnData | str | Path,
        *,
        redraws: int = 3,
        key_added: str = KEY,
        **options: Any,
    ) -> pd.DataFrame:
        """Which genes change in predicted cells, and how sure the model is of each.

        Args:
            predicted: cells from `predict`; `uns[key_added]` gets the layout of scanpy's `rank_genes_groups`.
            controls: the control cells that they were predicted from.
            redraws: further predictions, from other controls and seeds, that tell the spread of fold changes.
            key_added: where to write.
            **options: see `evae.inference.predicted_effects.Compared`, and `predict`.

        Returns:
            DataFrame, see `evae.inference.predicted_effects.effects_of`, and how far every pair may be trusted:
            `expected_error`, `error_90`, `expected_correlation`, `remark` (see `evae.inference.calibrate`).

        Raises:
            EvaeError: cells of another panel, or without controls of their type; and as `predict`.
        """
        return effects_in(self._prior(), self.predict, predicted, controls, Compared.of(redraws, key_added, options))

    def score(
        self,
        cells: ad.AnnData | str | Path,
        perturbation: str | Sequence[str],
        controls: ad.AnnData | str | Path | None = None,
        **options: Any,
    ) -> pd.DataFrame:
        """How likely cells are after perturbations.

        Args:
            cells: raw counts of any cells.
            perturbation: one name or several, the control among them if wanted.
            controls: unperturbed cells of the same cell types, for a prior that reads them; see `predict`.
            **options: see `evae.inference.scoring.Scoring`.

        Returns:
            DataFrame (cells, perturbations): log-likelihood of the cell's codes, nats (of masked diffusion a lower
            bound). A prior that reads cells scores the control as an unknown perturbation without an effect.

        Raises:
            EvaeError: as `predict`; a prior without a likelihood (flow matching).
        """
        return score_cells(self._prior(), cells, perturbation, controls, Scoring(**options), self.device)

    def rank_perturbations(
        self,
        cells: ad.AnnData | str | Path,
        controls: ad.AnnData | str | Path | None = None,
        perturbations: Sequence[str] | None = None,
        groupby: str | None = None,
        **options: Any,
    ) -> pd.DataFrame:
        """Which perturbation explains cells best, the control among them.

        Args:
            cells, controls: as in `score`.
            perturbations: names; all that training saw if None.
            groupby: obs column of `cells`, whose groups are ranked one by one; None ranks all cells together.
            **options: as in `score`.

        Returns:
            DataFrame, best first within each group: `group`, `perturbation`, `log_likelihood` (mean, nats a cell),
            `over_control` (that less the control's, which is level with the best name on the controls) and `best_for`
            (share of the cells that it explains best).
        """
        return rank_cells(self._prior(), cells, perturbations, controls, groupby, Scoring(**options), self.device)

    def _prior(self, batch_size: int = 1) -> Checkpoint:
        if not self.checkpoint.is_prior:
            raise EvaeError(f"{self.checkpoint.name} is a tokenizer, which embeds but does not predict; give a prior.")
        if batch_size < 1:
            raise EvaeError(f"batch_size is {batch_size}; give at least 1.")
        return self.checkpoint
