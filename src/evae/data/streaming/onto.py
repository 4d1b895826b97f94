"""Datasets read over the gene panel and the vocabularies of a model that was trained before.

Its genes and names keep their places; names that only the datasets have follow. A gene of the panel that a dataset does
not count over is 0 in all its cells, as in the cells of a user.
"""

from dataclasses import dataclass, replace

import numpy as np

from evae.common.messages import number_of
from evae.data.format import Dataset, DatasetInfo
from evae.models.contract_evae import EvaeError
from evae.models.genes_evae import GeneColumns
from evae.models.processing_evae import EvaeProcessor


@dataclass(frozen=True)
class Onto:
    """What the datasets are read over.

    Attributes:
        processor: of the model: its panel, its names, its control.
        name: what messages call the model.
    """

    processor: EvaeProcessor
    name: str

    def carried(self, dataset: Dataset) -> DatasetInfo:
        """What a dataset says of itself, with the model's panel in the place of its own.

        Raises:
            EvaeError: genes that the model does not know, too few of those that it does, or another control.
        """
        info, own = dataset.info, self.processor
        lacking = [gene for gene, place in zip(info.genes, self.places(info), strict=True) if place < 0]
        if lacking:
            raise EvaeError(
                f"{dataset} counts over {number_of(len(lacking), 'gene')} that {self.name} does not know, such as "
                f"{lacking[0]}; prepare it with the panel of the model: --genes {self.name}."
            )
        if len(info.genes) < own.min_coverage * len(own.genes):
            raise EvaeError(
                f"{dataset} has only {len(info.genes):,} of the {number_of(len(own.genes), 'gene')} of {self.name}, "
                f"below min_coverage {own.min_coverage}; give cells that measure more of them."
            )
        if info.control != own.control:
            raise EvaeError(
                f"the control of {dataset} is '{info.control}', that of {self.name} '{own.control}'; name it alike in "
                "the cells, and prepare them again."
            )
        ids = own.ensembl_ids if own.ensembl_ids is not None else [""] * len(own.genes)
        return replace(info, genes=list(own.genes), ensembl_ids=list(ids))

    def grown(self, info: DatasetInfo) -> DatasetInfo:
        """`info` with the model's names first, in their order."""
        own = self.processor
        known = own.names().known.treatments
        return replace(
            info,
            perturbations=list(dict.fromkeys([*own.perturbations, *info.perturbations])),
            cell_types=list(dict.fromkeys([*own.cell_types, *info.cell_types])),
            treatments={**known, **info.treatments} if known else {},  # else labels are names as any other
        )

    def places(self, info: DatasetInfo) -> np.ndarray:
        """The place of each gene of a dataset in the model's panel, int64 (genes,), -1 where it has none."""
        found = self.processor.gene_positions(GeneColumns.of_panel(info.genes, info.ensembl_ids))
        places = np.full(len(info.genes), -1, dtype=np.int64)
        places[found[found >= 0]] = np.flatnonzero(found >= 0)
        return places
