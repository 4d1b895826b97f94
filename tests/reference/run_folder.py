"""A run folder with the published layout, for a model of `published.py`."""

import json

import yaml
from safetensors.torch import save_file

INPUTS = {  # what the published data loader does, by what the model reads
    "bins": {"apply_normalize": False, "apply_log1p": False, "use_binning": "quantile"},
    "counts": {"apply_normalize": False, "apply_log1p": False, "use_binning": "none"},
    "normalized": {"apply_normalize": True, "apply_log1p": True, "use_binning": "none"},
}


def sizes_of(size, kind):
    """Settings of a transformer."""
    return {
        "type": kind, "d_model": size.width, "nhead": size.n_heads, "num_layers": size.n_layers,
        "dim_feedforward": size.inner, "attn_dropout": 0.1, "layer_norm_eps": 1.0e-5, "activation": "gelu",
    }  # fmt: skip


def write_run(folder, model, reads, weights=None, step="step_0000200_final", wrapped=False):
    """Write a run.

    Args:
        folder: where to.
        model: settings of the model.
        reads: what the model reads: bins, counts or normalized.
        weights: state dict.
        step: name of the checkpoint.
        wrapped: whether names begin with `module.`, as after training on several GPUs.
    """
    data = {"h5ad_path": "cells.h5ad", "pert_col": "gene", "ctrl_label": "non-targeting", "target_sum": None}
    checkpoint = folder / "checkpoints" / step
    checkpoint.mkdir(parents=True)
    settings = {"seed": 401, "dataset": data | INPUTS[reads], "model": model}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "dataset_stats.json").write_text(
        json.dumps({"log_lib_mean": 4.0, "log_lib_std": 0.5, "median_library_size": 60.0})
    )
    (folder / "checkpoints" / "latest").write_text(step)
    prefix = "module." if wrapped else ""
    save_file(
        {prefix + name: tensor.contiguous() for name, tensor in weights.items()}, checkpoint / "model.safetensors"
    )
    return folder
