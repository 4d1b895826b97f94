"""EvaeModel, the tokenizer: a VAE with a discrete (FSQ, VQ, LFQ) or Gaussian bottleneck over a cell's counts.

Encode: a gene's token is `gene_embedding[g] * f(count)`, and learned latent tokens attend to the gene tokens.
Quantize: each latent token becomes one code. Decode: gene queries attend to the codes, and an output head turns the
decoded features into a distribution over counts.
Source: doi:10.64898/2026.06.15.732063.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput, can_return_tuple

from .alignment_evae import align_weights  # noqa: F401  (the Hub copies only what this file imports)
from .coders_evae import EvaeDecoder, EvaeEncoder, EvaeMLPDecoder, EvaeMLPEncoder, split_counts, to_dense, to_sparse
from .configuration_evae import COUNTS, EvaeConfig
from .contract_evae import EvaeError
from .count_embedding_evae import CountEmbedding  # noqa: F401
from .device_evae import most_numbers
from .heads_evae import HEAD_CLASSES, encoder_input, with_gradient_of
from .labels_evae import AuxiliaryHeads, DecoderConditions
from .layers_evae import check_ids, log_library
from .pretrained_evae import EvaePreTrainedModel
from .quantization_evae import QUANTIZER_CLASSES, LatentStandardizer
from .randomness_evae import CellStreams, Randomness

DECODED_NUMBERS = 2**25  # largest activation of a decoder layer, in numbers, when counts are drawn


@dataclass
class EvaeOutput(ModelOutput):
    """Output of `EvaeModel`.

    Args:
        loss: reconstruction loss; with a Gaussian quantizer, plus the weighted KL divergence; with auxiliary heads and
            labels, plus theirs.
        reconstruction_loss, kl_loss: the head's loss; KL divergence, nats a cell (Gaussian only).
        auxiliary_loss: weighted loss of the auxiliary heads.
        codes: int64 (cells, latents) (not Gaussian).
        latents: the decoder's input, (cells, latents, latent_width).
        outputs: the decoder's output, the parameters of the head's distribution, (cells, genes, n_outputs). In
            training with `loss_genes`, only the drawn genes, in that order, unless the head needs all.
    """

    loss: Tensor | None = None
    reconstruction_loss: Tensor | None = None
    kl_loss: Tensor | None = None
    auxiliary_loss: Tensor | None = None
    codes: Tensor | None = None
    latents: Tensor | None = None
    outputs: Tensor | None = None


class EvaeModel(EvaePreTrainedModel):
    """The tokenizer. Counts come dense, (cells, genes), or as lists of expressed genes (see `forward`)."""

    def __init__(self, config: EvaeConfig) -> None:
        super().__init__(config)
        if config.quantizer in COUNTS:
            raise EvaeError(
                f"a tokenizer with quantizer '{config.quantizer}' would do nothing; give fsq, vq, lfq or gaussian."
            )
        gaussian = config.quantizer == "gaussian"
        self.encoder = EvaeEncoder(config) if config.encoder == "attention" else EvaeMLPEncoder(config)
        standardize = config.standardize_latents and not gaussian
        self.standardizer = LatentStandardizer(config.n_latents, config.latent_width) if standardize else None
        # Standardizing cancels a bias. Its gradient would be rounding noise, which Adam scales up to full steps.
        width = config.latent_width * (2 if gaussian else 1)
        self.to_latent = nn.Linear(config.hidden_size, width, bias=not standardize)
        self.quantizer: Any = QUANTIZER_CLASSES[config.quantizer](config)
        self.head = HEAD_CLASSES[config.head](config)
        decoder = EvaeDecoder if config.decoder == "attention" else EvaeMLPDecoder
        self.decoder = decoder(config, self.head.n_outputs)
        self.conditions = DecoderConditions(config) if config.decoder_conditions != "none" else None
        has_heads = config.classification_weight or config.regression_weight
        self.auxiliary = AuxiliaryHeads(config) if has_heads else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        counts: Tensor,
        gene_ids: Tensor | None = None,
        library_size: Tensor | None = None,
        generator: Randomness = None,
        perturbation_ids: Tensor | None = None,
        cell_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> EvaeOutput:
        """Encode, quantize, decode, and compare.

        Args:
            counts: raw counts, dense (cells, genes), or, with `gene_ids`, of the expressed genes (cells, tokens).
            gene_ids: panel index of every entry of `counts`; entries with count 0 are padding.
            library_size: total counts over the panel, (cells,); the row sum of `counts` if None.
            generator: source of randomness in training, except for dropout. With `CellStreams` a cell's random numbers
                do not depend on its batch.
            perturbation_ids, cell_type_ids: labels of the cells, (cells,), by their places in the configuration's
                names; needed where the decoder is told them, and in training with an auxiliary head.
        """
        target, whole = counts, None
        streams = CellStreams.of(generator, len(counts)) if self.training else None
        if streams is not None and self.config.count_splitting:
            counts, target, whole = split_counts(counts, streams.branch(0))
            library_size = target.sum(1)
        library_size = counts.sum(1) if library_size is None else library_size
        tokens = self._encoder_tokens(counts, gene_ids)
        latents, codes, penalty = self._bottleneck(self._parameters_of(tokens), streams)
        told = self._told(latents, perturbation_ids, cell_type_ids)
        if whole is not None:  # no gradient to the encoder from whole cells: it would learn to memorise noise
            latents = torch.where(whole[:, None, None], latents.detach(), latents)
        genes = self._draw_loss_genes(streams, counts.device)
        outputs = self._decode(latents, library_size, told, whole, genes)
        if genes is not None and self.head.needs_all_genes:
            with torch.no_grad():
                outputs_of_all = self._decode(latents, library_size, told, whole)
            outputs = with_gradient_of(outputs_of_all, outputs, genes)
        reconstruction = self.head.loss(outputs, to_dense(target, gene_ids, self.config.n_genes), library_size, genes)
        loss = reconstruction if penalty is None else reconstruction + self.config.penalty_weight * penalty.mean()
        auxiliary = self._auxiliary_loss(tokens, perturbation_ids)
        loss = loss if auxiliary is None else loss + auxiliary
        return EvaeOutput(
            loss=loss,
            reconstruction_loss=reconstruction.detach(),
            kl_loss=penalty.mean().detach() if codes is None else None,
            auxiliary_loss=None if auxiliary is None else auxiliary.detach(),
            codes=codes,
            latents=latents,
            outputs=outputs,
        )

    def _draw_loss_genes(self, streams: CellStreams | None, device: torch.device) -> Tensor | None:
        """The genes of this training batch's loss, int64 (loss_genes,); None for all."""
        n_genes, n_drawn = self.config.n_genes, self.config.loss_genes
        if streams is None or not 0 < n_drawn < n_genes:
            return None
        return streams.of_batch().uniform(n_genes, device=device)[0].argsort(stable=True)[:n_drawn]

    def encode(self, counts: Tensor, gene_ids: Tensor | None = None) -> Tensor:
        """Codes, int64 (cells, latents). Gaussian: posterior means, (cells, latents, latent_dim)."""
        return self.tokens_and_latents(counts, gene_ids)[0]

    def tokens_and_latents(self, counts: Tensor, gene_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What `encode` gives, and the latents before quantization, (cells, latents, latent_width)."""
        parameters = self._latent_parameters(counts, gene_ids)
        latents, codes, _ = self._bottleneck(parameters)
        return (latents, latents) if codes is None else (codes, parameters)

    def embed(self, counts: Tensor, gene_ids: Tensor | None = None, kind: str = "latents") -> Tensor:
        """Embedding of cells, (cells, features).

        Args:
            counts, gene_ids: as in `forward`.
            kind: "latents" (before quantization, flattened), "codes" (after quantization, flattened) or "pooled"
                (mean of the encoder's latent tokens).
        """
        if kind == "pooled":
            return self._encoder_tokens(counts, gene_ids).mean(1)
        parameters = self._latent_parameters(counts, gene_ids)
        if kind == "latents":
            return parameters[..., : self.config.latent_width].flatten(1)
        if kind == "codes":
            return self._bottleneck(parameters)[0].flatten(1)
        raise EvaeError(f"embedding '{kind}' does not exist; choose latents, pooled or codes.")

    def decode(
        self,
        codes: Tensor,
        library_size: Tensor | None = None,
        perturbation_ids: Tensor | None = None,
        cell_type_ids: Tensor | None = None,
        independent: bool = False,
    ) -> Tensor:
        """Parameters of the head's distribution, (cells, genes, n_outputs).

        Args:
            codes: codes (cells, latents), or latents (cells, latents, latent_width).
            library_size: total counts over the panel, (cells,); needed with `condition_on_library`.
            perturbation_ids, cell_type_ids: as in `forward`; needed where the decoder is told them.
            independent: with `count_splitting`, the distribution of other molecules of the same cell than those that
                were encoded: codes hold some noise of these, to which genes drawn one by one would add all of it again.
        """
        if codes.dim() == 2:
            check_ids(codes, self.config.codebook_size, "code", self.training)
        latents = self.codes_to_latents(codes) if codes.dim() == 2 else codes
        if self.config.condition_on_library and library_size is None:
            raise EvaeError("this tokenizer decodes with a library size; give library_size (cells,).")
        told = self._told(latents, perturbation_ids, cell_type_ids)
        return self._decode(latents, library_size, told, independent=independent)

    def _told(self, latents: Tensor, perturbation_ids: Tensor | None, cell_type_ids: Tensor | None) -> Tensor | None:
        """What the decoder is told of the labels, (cells, hidden_size); None where it is told nothing."""
        return None if self.conditions is None else self.conditions(perturbation_ids, cell_type_ids).to(latents.dtype)

    def _auxiliary_loss(self, tokens: Tensor, perturbation_ids: Tensor | None) -> Tensor | None:
        if self.auxiliary is None or (perturbation_ids is None and not self.training):
            return None
        if perturbation_ids is None:
            raise EvaeError("this tokenizer is trained with an auxiliary head; give perturbation_ids.")
        return self.auxiliary(tokens, perturbation_ids)

    def _decode(
        self, latents: Tensor, library_size: Tensor | None, told: Tensor | None, whole: Tensor | None = None,
        genes: Tensor | None = None, independent: bool = False,
    ) -> Tensor:  # fmt: skip
        """`decode` of `genes`, int64 (some,), all if None.

        `told` is of `_told`; `whole`, bool (cells,), marks cells that were not split.
        """
        context = latents.new_zeros(len(latents), 0)
        if self.config.condition_on_library and library_size is not None:
            context = log_library(library_size, self.config.median_library_size).to(latents.dtype)
        if self.config.count_splitting:
            own = torch.full_like(context[:, :1], not independent) if whole is None else whole.to(context).unsqueeze(1)
            context = torch.cat([context, own], dim=1)
        return self.decoder(latents, context if told is None else torch.cat([context, told], dim=1), genes)

    def codes_to_latents(self, codes: Tensor) -> Tensor:
        """Codes (cells, latents) to latents (cells, latents, latent_width)."""
        return self.quantizer.codes_to_values(codes).to(self.dtype)

    def sample_counts(
        self, codes: Tensor, library_size: Tensor, generator: Randomness = None, independent: bool = False,
        **labels: Any,
    ) -> Tensor:  # fmt: skip
        """Draw counts, float32 (cells, genes), from the distribution of `decode`, whose arguments these are."""
        widest = self.config.intermediate_size if self.config.decoder == "attention" else self.head.n_outputs
        at_once = max(1, most_numbers(codes.device, DECODED_NUMBERS) // (self.config.n_genes * widest))
        streams, drawn = generator, []
        for start in range(0, len(codes), at_once):
            rows = slice(start, start + at_once)
            streams = generator.fork(rows) if isinstance(generator, CellStreams) else generator
            told: dict[str, Any] = {name: ids[rows] for name, ids in labels.items()}
            outputs = self.decode(codes[rows], library_size[rows], independent=independent, **told)
            drawn.append(self.head.sample(outputs, library_size[rows], streams))
        if isinstance(generator, CellStreams) and isinstance(streams, CellStreams):
            generator.join(streams)
        return torch.cat(drawn)

    def mean_counts(self, codes: Tensor, library_size: Tensor, **labels: Any) -> Tensor:
        """Mean of the head's distribution, float32 (cells, genes), given codes or latents; see `sample_counts`."""
        return self.head.mean(self.decode(codes, library_size, **labels), library_size)

    @torch.no_grad()
    def calibrate(self, counts: Tensor, gene_ids: Tensor | None = None, **kwargs: Any) -> None:
        """Initialise an untrained model from a sample of cells.

        Latent dimensions get zero mean and unit variance, so that all codes are in use. Outputs start at each gene's
        marginal distribution where the decoder has a bias per gene, which saves hundreds of training steps.
        """
        self.decoder.start_at(self.head.marginal(to_dense(counts, gene_ids, self.config.n_genes), counts.sum(1)))
        tokens = self._encoder_tokens(counts, gene_ids)
        latents = self.to_latent(tokens).flatten(0, 1).float()
        mean, scale = latents.mean(0), latents.std(0).clamp_min(1e-6)
        if self.config.quantizer != "gaussian":
            self.to_latent.weight.div_(scale.unsqueeze(-1))
            if self.to_latent.bias is not None:
                self.to_latent.bias.sub_(mean).div_(scale)
        if self.standardizer is not None:
            self.standardizer.set_statistics(self.to_latent(tokens))
        if self.config.quantizer == "vq":
            self.quantizer.set_codes(self._latent_parameters(counts, gene_ids).flatten(0, 1).float())

    def _encoder_tokens(self, counts: Tensor, gene_ids: Tensor | None) -> Tensor:
        self._check_genes(counts, gene_ids)
        if not self.config.sparse_encoding:
            counts = to_dense(counts, gene_ids, self.config.n_genes)
            gene_ids = torch.arange(self.config.n_genes, device=counts.device).expand_as(counts)
        elif gene_ids is None:
            counts, gene_ids = to_sparse(counts)
        return self.encoder(encoder_input(counts, self.config), gene_ids)

    def _check_genes(self, counts: Tensor, gene_ids: Tensor | None) -> None:
        n_genes = self.config.n_genes
        if gene_ids is not None:
            check_ids(gene_ids, n_genes, "gene", self.training)
        elif counts.shape[1] != n_genes:
            raise EvaeError(f"dense counts have {counts.shape[1]} genes, the panel has {n_genes}; give gene_ids.")

    def _latent_parameters(self, counts: Tensor, gene_ids: Tensor | None) -> Tensor:
        return self._parameters_of(self._encoder_tokens(counts, gene_ids))

    def _parameters_of(self, tokens: Tensor) -> Tensor:
        """What the quantizer reads of latent tokens (cells, latents, hidden_size)."""
        parameters = self.to_latent(tokens)
        return parameters if self.standardizer is None else self.standardizer(parameters)

    def _bottleneck(self, parameters: Tensor, generator: Randomness = None) -> tuple[Tensor, Any, Any]:
        """Latents, codes (not Gaussian), and what the quantizer adds to the loss, if anything."""
        if self.config.quantizer != "gaussian":
            return (*self.quantizer(parameters), None)[:3]
        latents, _, kl = self.quantizer(parameters, generator)
        return latents, None, kl


EvaeModel.register_for_auto_class("AutoModel")
