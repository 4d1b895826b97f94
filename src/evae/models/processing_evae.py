"""EvaeProcessor: turns a user's cells into the model's tensors.

It holds the gene panel, the vocabularies and the library sizes of the training cells. It checks the input contract:
raw counts, genes that match by symbol or Ensembl id and cover enough of the panel, and known names.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin

from .contract_evae import EvaeError, check_raw_counts, check_unique, look_up, number_of
from .genes_evae import GeneColumns, case_hint, gene_columns, match_genes
from .names_evae import PerturbationNames
from .treatments_evae import Treatment


class EvaeProcessor(FeatureExtractionMixin):
    """Turns AnnData or arrays of raw counts into the model's sparse batch.

    Args:
        genes: symbols of the panel, in the model's order.
        ensembl_ids: their Ensembl ids, "" where unknown; may be left out.
        perturbations: names of the training perturbations, in the order of their ids.
        cell_types: likewise.
        perturbation_units: names of the prior's perturbation ids, if these are not `perturbations`: the parts of
            combinations, and the names that have a feature vector.
        control: the control's name among `perturbations`.
        library_size_quantiles: quantiles, equally spaced from 0 to 1, of the training cells' library sizes over the
            panel. Library sizes are drawn from them if no controls are given.
        training_pairs: for each cell type the perturbations seen with it in training.
        min_coverage: smallest fraction of the panel that the user's genes must cover.
        combination_sign: separator of the parts of a combination in `perturbations`; "" for no combinations.
        library_model: how library sizes change with perturbation and cell type; None where it is not known.
        calibration: how far predictions may be trusted, from held-out pairs; None where nobody asked.
        treatments: fields of `Treatment`, of the perturbations and parts that say more than a name.
        batches: names of the experimental batches, in the order of their ids, of a prior that reads them.
    """

    model_input_names = ["counts", "gene_ids", "library_size"]  # noqa: RUF012

    def __init__(
        self,
        genes: Sequence[str] = (),
        ensembl_ids: Sequence[str] | None = None,
        perturbations: Sequence[str] = (),
        cell_types: Sequence[str] = (),
        perturbation_units: Sequence[str] | None = None,
        control: str | None = None,
        library_size_quantiles: Sequence[float] | None = None,
        training_pairs: Mapping[str, Sequence[str]] | None = None,
        min_coverage: float = 0.5,
        combination_sign: str = "+",
        library_model: Mapping[str, Any] | None = None,
        calibration: Mapping[str, Any] | None = None,
        treatments: Sequence[Mapping[str, Any]] | None = None,
        batches: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.genes = [str(g) for g in genes]
        self.ensembl_ids = [str(i) for i in ensembl_ids] if ensembl_ids is not None else None
        self.perturbations = [str(p) for p in perturbations]
        self.cell_types = [str(c) for c in cell_types]
        self.perturbation_units = [str(p) for p in perturbation_units] if perturbation_units is not None else None
        self.control = control
        quantiles = library_size_quantiles
        self.library_size_quantiles = None if quantiles is None else [float(q) for q in quantiles]
        pairs = training_pairs or {}
        self.training_pairs = {str(c): [str(p) for p in ps] for c, ps in pairs.items()} or None
        self.min_coverage = float(min_coverage)
        self.combination_sign = str(combination_sign)
        self.library_model = dict(library_model) if library_model else None
        self.calibration = dict(calibration) if calibration else None
        self.treatments = [dict(treatment) for treatment in treatments] if treatments else None
        self.batches = [str(b) for b in batches] if batches else None
        check_unique(self.genes, "panel gene")
        if control is not None:
            look_up([control], self.perturbations, "control perturbation")

    def __call__(
        self,
        data: Any,
        genes: Sequence[str] | None = None,
        ensembl_ids: Sequence[str] | None = None,
        perturbation: str | Sequence[str] | None = None,
        cell_type: str | Sequence[str] | None = None,
        layer: str | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Check cells and convert them to the model's sparse batch.

        Args:
            data: AnnData, a scipy sparse matrix or an array of raw counts, (cells, genes). The genes of an AnnData
                are found in `var` as `gene_columns` says.
            genes: names of the columns where `data` is not AnnData; the panel itself if None.
            ensembl_ids: their Ensembl ids, where known.
            perturbation: one name for all cells or one a cell; adds `perturbation_ids` and, where treatments are known,
                `treatments`.
            cell_type: likewise; adds `cell_type_ids`.
            layer: the AnnData layer that holds the counts; `X` if None.
            return_tensors: only "pt".

        Returns:
            `counts` float32 and `gene_ids` int64 of the expressed genes, (cells, tokens), padded with count 0;
            `library_size` float32 (cells,), total counts over the panel; and the ids asked for, int64 (cells,).

        Raises:
            EvaeError: counts are not raw; genes have no name, occur twice or cover too little; a name is unknown.
        """
        if return_tensors != "pt":
            raise EvaeError(f"return_tensors '{return_tensors}' is not available; use 'pt'.")
        matrix, columns = self._columns(data, genes, ensembl_ids, layer)
        rows, places, values, n_cells = _entries(matrix)
        check_raw_counts(values, f"layer '{layer}'" if layer else "the counts")
        batch = self._batch(rows, self.panel_index(columns)[places], values, n_cells)
        if perturbation is not None:
            names = _one_each(perturbation, n_cells, "perturbation")
            batch["perturbation_ids"] = self.perturbation_ids(names)
            if (treatments := self.treatments_of(names)) is not None:
                batch["treatments"] = treatments
        if cell_type is not None:
            names = _one_each(cell_type, n_cells, "cell type")
            batch["cell_type_ids"] = torch.from_numpy(look_up(names, self.cell_types, "cell type"))
        return BatchFeature(batch)

    def coverage(self, genes: Sequence[str], ensembl_ids: Sequence[str] | None = None) -> float:
        """Fraction of the panel, 0 to 1, found among the given genes."""
        return float((self.gene_positions(_named(genes, ensembl_ids)) >= 0).mean())

    def gene_positions(self, columns: GeneColumns) -> np.ndarray:
        """Index of each gene of the panel among the given genes, int64 (panel,), -1 if it is absent."""
        return match_genes(GeneColumns.of_panel(self.genes, self.ensembl_ids), columns)

    def perturbation_ids(self, names: Sequence[str]) -> torch.Tensor:
        """The prior's ids of perturbations, int64 (names,); with combinations (names, parts), padded with -1.

        A combination `A+B` is allowed if its parts are.

        Raises:
            EvaeError: the prior does not know a name or one of its parts.
        """
        return self.names().ids(names)

    def treatments_of(self, names: Sequence[str]) -> torch.Tensor | None:
        """Kind, dose and time of perturbations as the prior takes them, float32 (names, parts, 3 or more).

        The kind is its place among `names().known.kinds()`, the dose is in the first of `names().known.dose_units()`,
        the time in hours, further numbers are doses in the other units; NaN where a part has none. None where the model
        knows no treatments.

        Raises:
            EvaeError: an agent that was seen in several doses, times or kinds, of which the name says none.
        """
        return self.names().numbers(names) if self.treatments else None

    def known_units(self) -> list[str]:
        """Names of the prior's perturbation ids, in their order: `perturbations`, or `perturbation_units` if given."""
        return self.perturbations if self.perturbation_units is None else self.perturbation_units

    def parts(self, perturbation: str) -> list[str]:
        """The parts of a combination; for any other perturbation, its name alone.

        A name is split into several parts only if training saw combinations.
        """
        return self.parts_of_all([perturbation])[str(perturbation)]

    def parts_of_all(self, perturbations: Iterable[str]) -> dict[str, list[str]]:
        """Perturbation -> its `parts`, for many at once."""
        return self.names().parts(perturbations)

    def names(self) -> PerturbationNames:
        """The perturbations as names, parts and treatments."""
        treatments = {t.label: t for t in (Treatment(**fields) for fields in self.treatments or ())}
        return PerturbationNames(
            self.perturbations, self.known_units(), self.control, self.combination_sign, treatments
        )

    def support(self, cell_type: str, perturbation: str) -> str:
        """What training saw of a pair: "seen together", "seen apart" or "unseen"; see `supports`."""
        return self.supports([(cell_type, perturbation)])[0]

    def supports(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """What training saw of each (cell type, perturbation): "seen together", "seen apart" or "unseen".

        It is "seen otherwise" where training saw the agent, but not with this dose, time or kind; "unknown" without
        `training_pairs`. Names with the same parts are the same perturbation: `B+A` is `A+B`, `A+control` is `A`.
        """
        if self.training_pairs is None:
            return ["unknown"] * len(pairs)
        return self.names().supports(pairs, self.training_pairs)

    def sample_library_size(self, n_cells: int, rng: np.random.Generator) -> np.ndarray:
        """Draw library sizes over the panel from the training distribution, float32 (cells,)."""
        if self.library_size_quantiles is None:
            raise EvaeError("this processor knows no library sizes; give control cells.")
        quantiles = np.asarray(self.library_size_quantiles)
        drawn = np.interp(rng.random(n_cells), np.linspace(0, 1, len(quantiles)), quantiles)
        return np.maximum(np.round(drawn), 1).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """What `save_pretrained` writes; the class is found by AutoProcessor and by AutoFeatureExtractor."""
        name = f"{type(self).__module__.rsplit('.', 1)[-1]}.{type(self).__name__}"
        output = super().to_dict()
        output["auto_map"] = {"AutoProcessor": name, "AutoFeatureExtractor": name}
        output["processor_class"] = type(self).__name__
        return output

    def _columns(
        self, data: Any, genes: Sequence[str] | None, ensembl_ids: Sequence[str] | None, layer: str | None
    ) -> tuple[Any, GeneColumns]:
        """The matrix, and the genes of its columns."""
        if hasattr(data, "var_names") and hasattr(data, "obs"):
            if layer is not None and layer not in data.layers:
                raise EvaeError(f"there is no layer '{layer}'; choose {' or '.join([*data.layers, 'none'])}.")
            matrix, columns = data.layers[layer] if layer else data.X, gene_columns(data.var_names, data.var)
        else:
            matrix = data.numpy() if isinstance(data, torch.Tensor) else data
            panel = GeneColumns.of_panel(self.genes, self.ensembl_ids)
            columns = panel if genes is None else _named(genes, ensembl_ids)
        if matrix is None:
            raise EvaeError("the AnnData has no X; name the layer that holds the raw counts.")
        if not hasattr(matrix, "shape"):
            matrix = np.asarray(matrix)
        if len(matrix.shape) != 2 or matrix.shape[0] == 0:
            raise EvaeError(f"counts must be (cells, genes) with at least one cell, not {matrix.shape}; give such.")
        if matrix.shape[1] != len(columns):
            shown = number_of(matrix.shape[1], "column")
            raise EvaeError(f"counts have {shown} but {number_of(len(columns), 'gene name')}; give `genes`.")
        return matrix, columns

    def panel_index(self, columns: GeneColumns) -> np.ndarray:
        """Panel index of every column of a count matrix, int64 (genes,), -1 if the panel has no such gene.

        Raises:
            EvaeError: the columns cover less of the panel than `min_coverage`.
        """
        position = self.gene_positions(columns)
        found = position >= 0
        if found.mean() < self.min_coverage:
            missing = [self.genes[g] for g in np.flatnonzero(~found)]
            raise EvaeError(
                f"only {found.sum()} of {len(self.genes)} panel genes are in the data (missing: "
                f"{', '.join(missing[:3])}, ...), below min_coverage {self.min_coverage} of preprocessor_config.json; "
                f"give symbols or Ensembl ids of the same species in var, or lower it.{case_hint(missing, columns)}"
            )
        index = np.full(len(columns), -1, dtype=np.int64)
        index[position[found]] = np.flatnonzero(found)
        return index

    def _batch(self, rows: np.ndarray, genes: np.ndarray, values: np.ndarray, n_cells: int) -> dict[str, torch.Tensor]:
        keep = (genes >= 0) & (values > 0)
        rows, genes, values = rows[keep], genes[keep], values[keep].astype(np.float32)
        expressed = np.bincount(rows, minlength=n_cells)
        if (expressed == 0).any():
            none = number_of(int((expressed == 0).sum()), "cell has", "cells have")
            raise EvaeError(f"{none} no counts over the gene panel, of {n_cells:,}; drop them first.")
        width = -(-int(expressed.max()) // 8) * 8
        column = np.arange(len(rows)) - np.repeat(np.cumsum(expressed) - expressed, expressed)
        gene_ids = np.zeros((n_cells, width), dtype=np.int64)
        counts = np.zeros((n_cells, width), dtype=np.float32)
        gene_ids[rows, column], counts[rows, column] = genes, values
        return {
            "counts": torch.from_numpy(counts),
            "gene_ids": torch.from_numpy(gene_ids),
            "library_size": torch.from_numpy(counts.sum(1)),
        }


def _named(genes: Sequence[str], ensembl_ids: Sequence[str] | None) -> GeneColumns:
    return gene_columns(genes, {} if ensembl_ids is None else {"ensembl_id": ensembl_ids})


def _one_each(given: str | Sequence[str], n_cells: int, kind: str) -> list[str]:
    names = [given] * n_cells if isinstance(given, str) else list(given)
    if len(names) != n_cells:
        raise EvaeError(f"{number_of(len(names), f'{kind} name')} for {n_cells:,} cells; give one, or one a cell.")
    return names


def _entries(matrix: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Row, column and value of every stored entry in row order, and the number of rows."""
    if hasattr(matrix, "to_memory"):  # a backed AnnData matrix
        matrix = matrix.to_memory()
    if hasattr(matrix, "tocsr"):
        matrix = matrix.tocsr()
        if not matrix.has_canonical_format:
            matrix = matrix.copy()
            matrix.sum_duplicates()
        rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        return rows, matrix.indices, matrix.data, matrix.shape[0]
    matrix = np.asarray(matrix)
    rows, columns = np.nonzero(matrix)  # NaN counts as nonzero, so the check sees it
    return rows, columns, matrix[rows, columns], matrix.shape[0]


EvaeProcessor.register_for_auto_class("AutoProcessor")
