"""What a tokenizer does with labels: conditions that its decoder is told, and auxiliary heads on its encoder.

The heads read the mean latent token of the encoder, p. With w1 and w2 the weights of the configuration they add

    w1 CE(classifier(p), perturbation) + w2 mean(1 - cos(regressor(p), feature vector of the perturbation))

to the loss; only training uses them. Source: doi:10.64898/2026.06.15.732063.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_evae import EvaeConfig
from .contract_evae import EvaeError
from .layers_evae import check_ids

try:  # transformers >= 5 skips what is already loaded
    from transformers import initialization as init
except ImportError:
    from torch.nn import init  # type: ignore[no-redef]


class LabelTable(nn.Embedding):
    """Vectors of labels, which start at 0: then no label says anything."""

    def init_weights(self) -> None:
        init.zeros_(self.weight)


class DecoderConditions(nn.Module):
    """Vectors of the labels that the decoder is told, (cells, hidden_size); 0 for a label without training cells."""

    def __init__(self, config: EvaeConfig) -> None:
        super().__init__()
        names = {"perturbation": config.perturbation_names, "cell-type": config.cell_type_names}
        told = list(names) if config.decoder_conditions == "both" else [config.decoder_conditions]
        for kind in told:
            if not names[kind]:
                raise EvaeError(f"a decoder that is told the {kind} needs {kind.replace('-', '_')}_names.")
        sizes = {kind: len(names[kind]) if kind in told else 0 for kind in names}
        width = config.hidden_size
        self.perturbation = LabelTable(sizes["perturbation"], width) if sizes["perturbation"] else None
        self.cell_type = LabelTable(sizes["cell-type"], width) if sizes["cell-type"] else None

    def forward(self, perturbation_ids: Tensor | None, cell_type_ids: Tensor | None) -> Tensor:
        """The sum of the vectors of ids (cells,); those of labels that the decoder is not told may be None."""
        given: list[Any] = [("perturbation", self.perturbation, perturbation_ids)]
        given += [("cell type", self.cell_type, cell_type_ids)]
        vectors = []
        for kind, table, ids in given:
            if table is None:
                continue
            if ids is None:
                raise EvaeError(f"this tokenizer's decoder is told the {kind}; give {kind.replace(' ', '_')}_ids.")
            check_ids(ids, table.num_embeddings, kind, self.training)
            vectors.append(table(ids.to(table.weight.device)))
        return torch.stack(vectors).sum(0)


class AuxiliaryHeads(nn.Module):
    """A linear classifier of perturbations and a linear regressor of their feature vectors."""

    targets: Tensor

    def __init__(self, config: EvaeConfig) -> None:
        super().__init__()
        n_perturbations, n_features = len(config.perturbation_names), config.n_features
        if not n_perturbations:
            raise EvaeError("classification_weight and regression_weight need perturbation_names.")
        if config.regression_weight and not n_features:
            raise EvaeError("regression_weight needs feature vectors; set perturbation_features to their table.")
        self.n_perturbations = n_perturbations
        self.weights = (config.classification_weight, config.regression_weight)
        self.classifier = nn.Linear(config.hidden_size, n_perturbations) if self.weights[0] else None
        self.regressor = nn.Linear(config.hidden_size, n_features) if self.weights[1] else None
        if self.regressor is not None:
            self.register_buffer("targets", torch.zeros(n_perturbations, n_features))

    def init_weights(self) -> None:
        if self.regressor is not None:
            init.zeros_(self.targets)

    def forward(self, tokens: Tensor, perturbation_ids: Tensor) -> Tensor:
        """The weighted losses of latent tokens (cells, latents, hidden_size) and their perturbations (cells,)."""
        check_ids(perturbation_ids, self.n_perturbations, "perturbation", self.training)
        pooled, ids = tokens.mean(1), perturbation_ids.long()
        loss = pooled.new_zeros((), dtype=torch.float32)
        if self.classifier is not None:
            loss = loss + self.weights[0] * F.cross_entropy(self.classifier(pooled).float(), ids)
        if self.regressor is not None:
            wanted = self.targets[ids].float()
            has_vector = wanted.abs().sum(1) > 0
            distance = 1 - F.cosine_similarity(self.regressor(pooled).float(), wanted)
            loss = loss + self.weights[1] * (distance * has_vector).sum() / has_vector.sum().clamp_min(1)
        return loss
