"""Both stages and all that is done with a model, on one device; what came out is written down.

    python on_device.py ROLE DEVICE FOLDER DATASET CELLS

ROLE is "reference" or "gpu". Models go to FOLDER/ROLE/NAME, numbers to FOLDER/ROLE/numbers.safetensors. Both roles
train priors on the tokenizers of the reference, and draw from its priors.
"""

import shutil
import sys
from pathlib import Path

import anndata as ad
import torch
from safetensors.torch import save_file

import evae
from evae.data.streaming.loader import CellLoader
from evae.models import EvaeModel
from evae.models.randomness_evae import CellStreams
from evae.training.prior import train_prior
from evae.training.settings import load_settings
from evae.training.tokenizer import train_tokenizer

STEPS = ["max_steps=4", "batch_size=32", "warmup_steps=1", "learning_rate=1e-3", "log_every=1"]
STEPS += ["save_every=2", "eval_every=2", "keep_checkpoints=2", "ema_decay=0.5"]
SIZES = ["model.hidden_size=16", "model.num_attention_heads=2", "model.intermediate_size=32", "model.dropout=0"]
TOKENIZER = ["model.n_latents=4", "model.encoder_layers=1", "model.decoder_layers=1", "model.fsq_levels=[4,4]"]
TOKENIZER += ["model.latent_dim=3", "model.standardize_latents=true"]
TOKENIZERS = ("fsq", "gaussian")
PRIORS = {"evae_ar": "fsq", "evae_mdlm": "fsq", "evae_flow": "gaussian"}
READS_CONTROLS = {"evae_ar", "evae_flow"}  # the other one knows perturbations and cell types by name alone


def train(name: str, out: Path, reference: Path, dataset: str, *more: str) -> None:
    """One run: the tokenizer with this quantizer, or the prior of this type."""
    common = [f"dataset={dataset}", f"output_dir={out}", *STEPS, *SIZES, *more]
    if name in TOKENIZERS:
        train_tokenizer(load_settings("tokenizer", None, [*common, *TOKENIZER, f"model.quantizer={name}"]))
    else:
        own = [f"tokenizer={reference / PRIORS[name]}", f"model_type={name}", "model.num_hidden_layers=1"]
        own += ["model.source_cells=1", "model.condition_on_effect=true"] if name in READS_CONTROLS else []
        own += ["model.start_from=noise"] if name == "evae_flow" else []  # some cells are drawn without controls
        train_prior(load_settings("prior", None, [*common, *own]))


def train_all(out: Path, reference: Path, dataset: str) -> None:
    """Every kind of model in float32, again from half-way as after a kill, and with bfloat16."""
    for name in (*TOKENIZERS, *PRIORS):
        train(name, out / name, reference, dataset, "mixed_precision=no")
        resumed = out / f"{name}-resumed"
        shutil.copytree(out / name, resumed)
        shutil.rmtree(resumed / "checkpoints" / "step-00000004")
        (resumed / "model.safetensors").unlink()
        train(name, resumed, reference, dataset, "mixed_precision=no", "resume=true")
    for name in (*TOKENIZERS, *PRIORS):
        train(name, out / f"{name}-bf16", reference, dataset, "mixed_precision=bf16")


@torch.no_grad()
def use_all(reference: Path, device: str, dataset: str, cells: ad.AnnData) -> dict[str, torch.Tensor]:
    """What the models of the reference encode, embed, sample and predict on the device."""
    numbers = {}
    batch = next(iter(CellLoader(dataset, "train", batch_size=200, shuffle=False, epochs=1, drop_last=False)))
    counts, gene_ids = batch["counts"].to(device), batch["gene_ids"].to(device)
    for name in TOKENIZERS:
        model = EvaeModel.from_pretrained(reference / name).to(device).eval()
        numbers[f"encode {name}"] = model.encode(counts, gene_ids=gene_ids)
        embedded = evae.pipeline(reference / name, device=device).embed(cells.copy(), progress=False)
        numbers[f"embed {name}"] = torch.as_tensor(embedded.obsm["X_evae"])
    n = 100
    for name in PRIORS:
        pipe = evae.pipeline(reference / name, device=device)
        ids = {"perturbation_ids": torch.arange(n) % 3, "cell_type_ids": torch.arange(n) % 2}
        ids = {key: values.to(device) for key, values in ids.items()}
        numbers[f"sample {name}"] = pipe.model.sample(**ids, generator=CellStreams(3, range(n)))
        names, cell_type = pipe.processor.perturbations, pipe.processor.cell_types[0]
        predicted = pipe.predict(None, names[1], cell_type, n_cells=n, progress=False)
        numbers[f"predict {name}"] = torch.from_numpy(predicted.X.toarray())
    return {name: values.cpu().contiguous() for name, values in numbers.items()}


def main(role: str, device: str, folder: str, dataset: str, cells: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU")
    out, reference = Path(folder, role), Path(folder, "reference")
    train_all(out, reference, dataset)
    save_file(use_all(reference, device, dataset, ad.read_h5ad(cells)), out / "numbers.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
