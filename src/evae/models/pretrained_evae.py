"""EvaePreTrainedModel: initialisation, loading and saving that the tokenizer and the priors share."""

from typing import Any

from torch import nn
from transformers.modeling_utils import PreTrainedModel

from .alignment_evae import align_weights
from .coders_evae import EvaeDecoder, EvaeEncoder
from .configuration_evae import EvaeConfig
from .contract_evae import EvaeError, number_of
from .heads_evae import NegativeBinomialHead
from .labels_evae import AuxiliaryHeads, LabelTable
from .layers_evae import check_size
from .quantization_evae import LatentStandardizer, VectorQuantizer

try:  # transformers >= 5 skips what is already loaded
    from transformers import initialization as init
except ImportError:
    from torch.nn import init  # type: ignore[no-redef]

_OWN = (
    *(EvaeEncoder, EvaeDecoder, LatentStandardizer, NegativeBinomialHead, VectorQuantizer),
    *(LabelTable, AuxiliaryHeads),
)  # modules that initialise themselves


class EvaePreTrainedModel(PreTrainedModel):
    """Initialisation and loading shared by the tokenizer and the priors."""

    config_class: Any = EvaeConfig
    base_model_prefix = "evae"
    main_input_name = "counts"
    _supports_sdpa = True
    _supports_attention_backend = True
    accepts_loss_kwargs = False  # losses are means; else Trainer leaves those of accumulated batches added up
    _no_split_modules = ["CrossBlock", "ModulatedBlock", "Perceptron"]  # noqa: RUF012

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        check_size(config)
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers, but reads safetensors only, and raises `EvaeError` if weights are missing."""
        kwargs.setdefault("use_safetensors", True)
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise EvaeError(
                f"the weights lack {number_of(len(missing), 'tensor')} of the model (first: {missing[0]}); "
                "download them again, or train the model anew."
            )
        align_weights(model, is_own_file=kwargs.get("state_dict") is None)
        return loaded if output_loading_info else model

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            init.ones_(module.weight)
            init.zeros_(module.bias)
        if isinstance(module, _OWN):
            module.init_weights()

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save weights, configuration and code, so that the folder loads without this package."""
        own = f"{type(self).__module__.rsplit('.', 1)[-1]}.{type(self).__name__}"
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), "AutoModel": own}
        super().save_pretrained(save_directory, **kwargs)
