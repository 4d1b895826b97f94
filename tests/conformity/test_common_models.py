"""transformers' own tests of models, configurations and feature extractors, run on tiny models of ours.

They stand in the source distribution of transformers, not in the wheel; `scripts/conformity.sh` fetches it. Of what
they import, the tests of generation and of exporters are in neither and are stood in for: `tests/models` tests
`generate`. transformers skips for itself what needs a GPU, another library or an attention that we have not.
"""

import importlib
import json
import sys
import tempfile
import types
import unittest
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import transformers

import evae.models as ours

PLACE = Path(sys.prefix) / "transformers-tests" / transformers.__version__ / "tests"
if not PLACE.is_dir():
    pytest.skip("transformers' tests are not there; scripts/conformity.sh fetches them", allow_module_level=True)
pytest.importorskip("parameterized", reason="transformers' tests need it")
STAND_INS = {  # module: a name in it and what it is
    "exporters.test_export": ("ExportTesterMixin", type("ExportTesterMixin", (), {})),
    "generation.test_utils": ("GenerationTesterMixin", type("GenerationTesterMixin", (), {})),
    "utils.test_configuration_utils": ("config_common_kwargs", {"return_dict": False, "output_hidden_states": True}),
}


def common(name):
    """A module of transformers' tests."""
    package = types.ModuleType("transformers_tests")
    package.__path__ = [str(PLACE)]
    sys.modules.setdefault("transformers_tests", package)
    for module, (attribute, value) in STAND_INS.items():
        stand_in = types.ModuleType(module)
        setattr(stand_in, attribute, value)
        sys.modules.setdefault(f"transformers_tests.{module.split('.')[0]}", types.ModuleType(module))
        sys.modules.setdefault(f"transformers_tests.{module}", stand_in)
    return importlib.import_module(f"transformers_tests.{name}")


ModelTesterMixin = common("test_modeling_common").ModelTesterMixin
ConfigTester = common("test_configuration_common").ConfigTester
FeatureTests = common("test_feature_extraction_common").FeatureExtractionSavingTestMixin

CELLS, GENES, LATENTS = 3, 30, 4
TOKENIZER = {
    "n_genes": GENES, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "n_latents": LATENTS,
    "encoder_layers": 2, "decoder_layers": 1, "fsq_levels": [5, 3], "latent_dim": 3, "median_library_size": 60.0,
}  # fmt: skip
PRIOR = {
    "n_perturbations": 3, "n_cell_types": 2, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24,
}  # fmt: skip
NO_HIDDEN_STATES = "the models give no hidden states"
CELLS_ARE_NO_TOKENS = "cells and latents are no tokens, so there is no table of embeddings to take or change"
SKIPPED = {  # for all models
    "test_hidden_states_output": NO_HIDDEN_STATES,
    "test_retain_grad_hidden_states_attentions": NO_HIDDEN_STATES,
    "test_model_weights_reload_no_missing_tied_weights": "a checkpoint without some of its weights is refused",
}


class Tester:
    """What the common tests ask of a model's own: its configuration, its inputs, its sizes."""

    batch_size, seq_length, hidden_size, num_hidden_layers, num_attention_heads = CELLS, LATENTS, 16, 2, 2
    is_training = True

    def __init__(self, test):
        self.get_config, self._inputs = test.config, test.inputs

    def prepare_config_and_inputs_for_common(self):
        torch.manual_seed(0)
        return self.get_config(), self._inputs()


class Configurations(ConfigTester):
    """The common tests of a configuration."""

    def create_and_test_config_from_and_save_pretrained_composite(self):
        """As theirs, but for the name of the file, which the part alone has and the part of a whole not."""
        config = self.config_class(**self.inputs_dict)
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            for name, part_class in config.sub_configs.items():
                part, whole = part_class.from_pretrained(folder).to_dict(), config.to_dict()[name]
                for fields in (part, whole):
                    for field in ("_name_or_path", "transformers_version"):
                        fields.pop(field, None)
                assert part == whole


class Common(ModelTesterMixin):
    """The common tests of one of our models."""

    test_resize_embeddings = has_attentions = False  # tests/models compares eager attention with SDPA
    skipped: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls):
        super().__init_subclass__()
        for name, reason in (SKIPPED | cls.skipped).items():
            assert hasattr(cls, name), name
            setattr(cls, name, unittest.skip(reason)(getattr(cls, name)))

    def setUp(self):
        self.model_tester = Tester(self)

    def config(self):
        return self.config_class(tokenizer_config=ours.EvaeConfig(**TOKENIZER | self.tokenizer), **PRIOR)

    def test_configuration(self):
        fields = json.loads(self.config().to_json_string())
        own = {name: fields[name] for name in (TOKENIZER if self.config_class is ours.EvaeConfig else PRIOR)}
        more = {} if self.config_class is ours.EvaeConfig else {"tokenizer_config": fields["tokenizer_config"]}
        Configurations(self, self.config_class, False, ["hidden_size"], **own, **more).run_common_tests()


def conditions():
    return {
        "perturbation_ids": torch.tensor([0, 1, 2]), "cell_type_ids": torch.tensor([0, 1, 0]),
        "library_size": torch.tensor([40.0, 60.0, 90.0]),
    }  # fmt: skip


class TestTokenizer(Common, unittest.TestCase):
    all_model_classes, config_class = (ours.EvaeModel,), ours.EvaeConfig
    skipped: ClassVar[dict[str, str]] = {
        "test_model_get_set_embeddings": CELLS_ARE_NO_TOKENS,
        "test_batching_equivalence": "it takes the fields encoder and decoder, which are words, for configurations",
    }

    def config(self):
        return ours.EvaeConfig(**TOKENIZER)

    def inputs(self):
        return {"counts": torch.poisson(torch.full((CELLS, GENES), 1.0))}


class TestAR(Common, unittest.TestCase):
    all_model_classes, config_class, tokenizer = (ours.EvaeARForCausalLM,), ours.EvaeARConfig, {}
    skipped: ClassVar[dict[str, str]] = {
        "test_model_base_model_prefix": "there is no base model: the class is the whole model",
        "test_generation_tester_mixin_inheritance": "the tests of generation are not published",
    }

    def inputs(self):
        return {"input_ids": torch.randint(0, 15, (CELLS, LATENTS)), **conditions()}

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        prepared = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return prepared | ({"labels": prepared["input_ids"]} if return_labels else {})


class TestMDLM(Common, unittest.TestCase):
    all_model_classes, config_class, tokenizer = (ours.EvaeMDLMModel,), ours.EvaeMDLMConfig, {}
    skipped: ClassVar[dict[str, str]] = {
        "test_model_outputs_equivalence": "it subtracts all outputs, and one is which codes are masked",
    }

    def inputs(self):  # a time and a mask, which are random otherwise
        masked = torch.tensor([[True, False, True, False]] * CELLS)
        codes = torch.randint(0, 15, (CELLS, LATENTS))
        return {"codes": codes, "time": torch.full((CELLS,), 0.5), "masked": masked, **conditions()}


class TestFlow(Common, unittest.TestCase):
    all_model_classes, config_class = (ours.EvaeFlowModel,), ours.EvaeFlowConfig
    tokenizer: ClassVar[dict[str, str]] = {"quantizer": "gaussian"}
    skipped: ClassVar[dict[str, str]] = {"test_model_get_set_embeddings": CELLS_ARE_NO_TOKENS}

    def inputs(self):  # a time and noise, which are random otherwise
        latents, noise = torch.randn(2, CELLS, LATENTS, 3)
        return {"latents": latents, "time": torch.full((CELLS,), 0.5), "noise": noise, **conditions()}


class TestProcessor(FeatureTests, unittest.TestCase):
    feature_extraction_class = ours.EvaeProcessor
    feat_extract_dict: ClassVar[dict[str, object]] = {
        "genes": ["STAT1", "JAK2"], "perturbations": ["control", "STAT1"], "cell_types": ["T"], "control": "control",
    }  # fmt: skip
