"""Run as a script: load saved folders with transformers alone, where `evae` is out of reach.

Usage: python without_package.py TOKENIZER AR_PRIOR MDLM_PRIOR FLOW_PRIOR INPUTS.safetensors OUTPUTS.safetensors
"""

import sys
from pathlib import Path


class Blocker:
    """An import hook by which `evae` does not exist."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "evae":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocker)

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoProcessor,
)

REMOTE = {"trust_remote_code": True}
CONDITIONS = ("perturbation_ids", "cell_type_ids", "library_size")


def load(auto_class, folder):
    """A model of the folder, whose weights and buffers lie at multiples of 64 bytes, as wide kernels want them."""
    model = auto_class.from_pretrained(folder, **REMOTE)
    assert {t.data_ptr() % 64 for t in (*model.parameters(), *model.buffers())} == {0}
    return model


def tokenizer_outputs(folder, counts, name):
    """Codes, loss and drawn counts of the tokenizer in `folder`."""
    tokenizer = load(AutoModel, folder)
    assert type(tokenizer).__name__ == "EvaeModel"
    processor = AutoProcessor.from_pretrained(folder, **REMOTE)
    assert type(AutoFeatureExtractor.from_pretrained(folder, **REMOTE)) is type(processor)
    batch = processor(counts.numpy(), perturbation="JAK2", cell_type="B cell")
    output = tokenizer(**batch)
    drawn = tokenizer.sample_counts(output.codes, batch["library_size"], torch.Generator().manual_seed(0))
    return {f"{name}.loss": output.loss, f"{name}.codes": output.codes, f"{name}.drawn": drawn}


def prior_outputs(folder, inputs, name):
    """Logits and draws of the prior in `folder`."""
    assert type(AutoConfig.from_pretrained(folder, **REMOTE)).__name__ == "EvaeARConfig"
    prior = load(AutoModelForCausalLM, folder)
    assert type(prior) is type(AutoModel.from_pretrained(folder, **REMOTE))
    settings = prior.generation_config
    assert settings.do_sample
    assert settings.top_k == 0
    assert settings.top_p == 1.0
    assert settings.eos_token_id is None
    conditions = {key: inputs[key] for key in CONDITIONS}
    greedy = prior.generate(**conditions, do_sample=False)
    torch.manual_seed(0)
    generated = prior.generate(**conditions, num_return_sequences=2)
    cells = prior.sample_cells(**conditions, generator=torch.Generator().manual_seed(0))
    modulation = prior.modulation.weight
    return {
        f"{name}.logits": prior(codes=inputs["codes"], **conditions).logits,
        f"{name}.greedy": greedy,
        f"{name}.generated": generated,
        f"{name}.cells": cells,
        f"{name}.modulation": modulation.detach(),
        f"{name}.trainable": torch.tensor([p.requires_grad for p in prior.train().parameters()]),
    }


def sampler_outputs(folder, inputs, name):
    """Loss and draws of the prior in `folder`, one with `sample` alone."""
    prior = load(AutoModel, folder)
    conditions = {key: inputs[key] for key in CONDITIONS}
    time = torch.tensor([0.3, 0.8])
    torch.manual_seed(0)
    loss = prior(inputs[prior.training_input], **conditions, time=time).loss
    cells = prior.sample_cells(**conditions, generator=torch.Generator().manual_seed(0), guidance_scale=2.0)
    kind = prior.config.model_type
    return {f"{name}.{kind}.loss": loss, f"{name}.{kind}.cells": cells}


def outputs(folders, inputs, name):
    """Everything the folders give."""
    tokenizer, prior, *others = folders
    with torch.no_grad():
        found = tokenizer_outputs(tokenizer, inputs["counts"], name) | prior_outputs(prior, inputs, name)
        for folder in others:
            found |= sampler_outputs(folder, inputs, name)
    return found


def save_again(folder):
    """Save what was loaded from remote code; the copy must hold the code too."""
    copy = folder.with_name(folder.name + "_copy")
    AutoModel.from_pretrained(folder, **REMOTE).save_pretrained(copy)
    AutoProcessor.from_pretrained(folder, **REMOTE).save_pretrained(copy)
    return copy


if __name__ == "__main__":
    torch.set_num_threads(1)
    *folders, given, written = map(Path, sys.argv[1:])
    inputs = load_file(given)
    found = outputs(folders, inputs, "first")
    found |= outputs([save_again(folder) for folder in folders], inputs, "copy")
    assert not any(module.partition(".")[0] == "evae" for module in sys.modules)
    save_file({key: value.contiguous() for key, value in found.items()}, written)
