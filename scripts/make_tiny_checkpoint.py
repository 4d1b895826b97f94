"""Make tests/tiny_checkpoint, a checkpoint of less than 1 MB for tests and snippets: tokenizer, prior and processor.

    rm -r tests/tiny_checkpoint; python scripts/make_tiny_checkpoint.py [OUT] [--steps 300] [--seed 1]

Both stages are trained for a few steps on the simulated screen of the tests (60 genes from GENE0001 on, cell types
type_A and type_B, four perturbations and "control"), so predictions have the right form and little meaning.
Takes half a minute on one CPU core. The code that every save carries is left out: it would be a second copy of
src/evae/models, so the checkpoint needs the package.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from evae.common.known_effects import FILE as EFFECTS
from evae.data.preparing.prepare import prepare_dataset
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.models import EvaeARForCausalLM, EvaeError, EvaeProcessor
from evae.training.prior import train_prior
from evae.training.settings import load_settings
from evae.training.tokenizer import train_tokenizer

OUT = Path(__file__).parents[1] / "tests" / "tiny_checkpoint"
MOST_BYTES = 1_000_000
SIZES = ["model.hidden_size=32", "model.num_attention_heads=2", "model.intermediate_size=64"]
TOKENIZER = [
    *("model.n_latents=6", "model.encoder_layers=2", "model.decoder_layers=1", "model.fsq_levels=[5, 5]"),
    *("model.decoder_self_attention=false", "model.condition_on_library=true"),
    "model.standardize_latents=true",
]
PRIOR = ["model.num_hidden_layers=2"]


def simulated_dataset(folder: Path, seed: int) -> Path:
    """A dataset folder of 900 simulated cells, two perturbations held out in type_B."""
    cells = simulate_perturb_seq(n_cells=900, n_genes=60, n_cell_types=2, n_perturbations=4, seed=seed)
    cells.write_h5ad(folder / "screen.h5ad")
    names = [name for name in cells.obs["perturbation"].cat.categories if name != "control"]
    return prepare_dataset(
        folder / "screen.h5ad",
        folder / "dataset",
        perturbation_key="perturbation",
        cell_type_key="cell_type",
        control="control",
        split={"cell_type": ["type_B"], "pert": names[:2]},
        seed=seed,
        progress=False,
    )


def make_tiny_checkpoint(out: Path, steps: int = 300, seed: int = 1) -> Path:
    """Train both stages and save the prior, which holds its tokenizer, with its processor.

    Args:
        out: folder to write; must not exist or be empty.
        steps: training steps of each stage.
        seed: of the simulated cells and of training.

    Returns:
        `out`.

    Raises:
        EvaeError: `out` holds something already, or the checkpoint came out too large.
    """
    check_empty(out)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        common = [f"dataset={simulated_dataset(folder, seed)}", f"seed={seed}", *SIZES]
        common += [f"max_steps={steps}", f"eval_every={steps}", f"save_every={steps}"]
        common += [
            f"warmup_steps={steps // 10}",
            "batch_size=64",
            "learning_rate=2e-3",
            "mixed_precision=no",
        ]
        places = [f"output_dir={folder / 'tokenizer'}"]
        tokenizer = train_tokenizer(load_settings("tokenizer", None, [*common, *TOKENIZER, *places]))
        places = [f"tokenizer={tokenizer}", f"output_dir={folder / 'prior'}"]
        prior = train_prior(load_settings("prior", None, [*common, *PRIOR, *places]))
        save_without_code(prior, out)
    check_size(out, MOST_BYTES)
    return out


def check_empty(out: Path) -> None:
    """Raise `EvaeError` unless a folder is new or empty."""
    if out.exists() and any(out.iterdir()):
        raise EvaeError(f"{out} is not empty; give another folder or delete it.")


def save_without_code(prior: Path, out: Path) -> None:
    """Copy the model, the processor and the known effects of a run, without the code that every save carries."""
    EvaeARForCausalLM.from_pretrained(prior).save_pretrained(out)
    EvaeProcessor.from_pretrained(prior).save_pretrained(out)
    for code in out.glob("*.py"):
        code.unlink()
    if (prior / EFFECTS).is_file():
        shutil.copyfile(prior / EFFECTS, out / EFFECTS)


def check_size(out: Path, most_bytes: int) -> None:
    """Raise `EvaeError` where the files of a folder are larger in sum."""
    size = sum(file.stat().st_size for file in out.iterdir())
    if size > most_bytes:
        raise EvaeError(f"{out} has {size:,} bytes, above {most_bytes:,}; make the model smaller.")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a tiny trained checkpoint for tests and snippets.")
    parser.add_argument("out", type=Path, nargs="?", default=OUT, help="folder to write; tests/tiny_checkpoint")
    parser.add_argument("--steps", type=int, default=300, help="training steps of each stage")
    parser.add_argument("--seed", type=int, default=1, help="of the simulated cells and of training")
    arguments = parser.parse_args()
    try:
        make_tiny_checkpoint(arguments.out, arguments.steps, arguments.seed)
    except EvaeError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
