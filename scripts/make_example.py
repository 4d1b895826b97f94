"""Make src/evae/example, the trained model that the package carries: knock-outs in THP-1 cells, and control cells.

    rm -r src/evae/example; python scripts/make_example.py papalexi_thp1.h5ad [--out FOLDER]

The cells are those of Papalexi et al. (Nature Genetics 53, 2021, doi:10.1038/s41588-021-00778-2): raw counts with
`perturbation` (25 targets and "non-targeting") and `bio_rep` (three batches), as sceptredata packs them. Batches stand
as cell types. The pairs of scripts/configs/splits/papalexi_thp1.json are held out, and the numbers of the card are
those of `evae evaluate` on them. Takes some ten minutes on one CPU core. The code that every save carries is left out:
it would be a second copy of src/evae/models.
"""

import argparse
import json
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np

from evae.common.numbers import format_number
from evae.data.preparing.prepare import prepare_dataset
from evae.evaluation import EvaluationResult, evaluate
from evae.inference.calibration import calibrate, keep_calibration
from evae.inference.example import CONTROLS, FOLDER
from evae.inference.held_out import dataset_cells, predict_held_out, read_controls
from evae.inference.pipeline import pipeline
from evae.training.prior import train_prior
from evae.training.settings import load_settings
from evae.training.tokenizer import train_tokenizer
from make_tiny_checkpoint import check_empty, check_size, save_without_code

CONFIGS = Path(__file__).parent / "configs"
SPLIT = CONFIGS / "splits" / "papalexi_thp1.json"
N_CONTROLS = 300
MOST_BYTES = 3_000_000
TOKENIZER = ["model.hidden_size=48", "model.intermediate_size=48"]
PRIOR = ["model.hidden_size=64", "model.num_hidden_layers=3", "model.intermediate_size=192"]
METRICS = {  # heading: group, level, metric
    "FD ↓": ("robust", "pooled", "fd"),
    "MMD² ↓": ("robust", "pooled", "mmd2_mix_biased"),
    "Pearson Δ ↑": ("perturbation", "pair", "pearson_delta"),
    "MSE ↓": ("perturbation", "pair", "mse"),
}
SHOWN = ("model", "additive shift", "other contexts", "control copy", "real split half")
CARD = """# The example model of evae

An autoregressive prior and its FSQ-VAE tokenizer over {n_genes} genes, trained on THP-1 cells with CRISPR knock-outs of
25 genes of the interferon pathway and around it. It comes with {n_controls} control cells of one batch.

```python
import evae

pipe = evae.pipeline("example")
predicted = pipe.predict(evae.example_controls(), "STAT1", n_cells=300)
```

**Data.** Papalexi et al., Nature Genetics 53, 322-331 (2021), doi:10.1038/s41588-021-00778-2, as packed by the R
package sceptredata (Katsevich-Lab, MIT licence). {n_train:,} training cells; {n_test:,} cells of twelve knock-outs in
the batch `{batch}` were held out of everything. Batches (`rep_1` to `rep_3`) stand as cell types.

**Numbers** on the held-out cells, protocol `robust`; the last row is what real cells reach against one another:

| system | {heads} |
| --- | {rule} |
{rows}

Where a batch is known from other knock-outs, shifted controls are a strong baseline. The model is small so that it fits
into the package; the preset `small` does better. How far its predictions may be trusted is calibrated on the twelve
held-out pairs (`evae calibrate`). Weights and controls: MIT licence, as the data.

Made by `scripts/make_example.py`.
"""


def make_example(cells: Path, out: Path) -> Path:
    """Train the model, measure it, and write model, controls and card.

    Raises:
        EvaeError: `out` holds something already, or the folder came out too large.
    """
    check_empty(out)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dataset = prepare_dataset(
            cells, folder / "dataset", perturbation_key="perturbation", cell_type_key="bio_rep",
            control="non-targeting", split=json.loads(SPLIT.read_text()),
        )  # fmt: skip
        common = [f"dataset={dataset}"]
        places = [f"output_dir={folder / 'tokenizer'}"]
        tokenizer = train_tokenizer(
            load_settings("tokenizer", CONFIGS / "small_tokenizer.yaml", [*common, *TOKENIZER, *places])
        )
        places = [f"tokenizer={tokenizer}", f"output_dir={folder / 'prior'}"]
        prior = train_prior(load_settings("prior", CONFIGS / "small_prior.yaml", [*common, *PRIOR, *places]))
        save_without_code(prior, out)
        pipe = pipeline(out)
        calibrate(pipe, dataset)
        keep_calibration(pipe, out)
        predicted = predict_held_out(pipe, dataset)
        result = evaluate(predicted, **dataset_cells(dataset))
        controls = some_controls(dataset)
        controls.write_h5ad(out / CONTROLS, compression="gzip")
        (out / "README.md").write_text(card(result, controls))
    check_size(out, MOST_BYTES)
    return out


def some_controls(dataset: Path) -> ad.AnnData:
    """Some hundred training controls of the batch whose knock-outs are held out, as whole counts."""
    controls = read_controls(dataset, json.loads(SPLIT.read_text())["cell_type"])
    rows = np.random.default_rng(0).choice(controls.n_obs, N_CONTROLS, replace=False)
    return controls[np.sort(rows)].copy()


def card(result: EvaluationResult, controls: ad.AnnData) -> str:
    """The README.md of the folder."""
    values = result.summary().set_index(["system", "group", "level", "metric"])["value"]
    rows = [
        f"| {name} | {' | '.join(format_number(values.get((name, *place), np.nan)) for place in METRICS.values())} |"
        for name in SHOWN
    ]
    sizes = result.stamp["n_cells"]
    return CARD.format(
        n_genes=controls.n_vars, n_controls=controls.n_obs, n_train=sizes["train"], n_test=sizes["real"],
        batch=controls.obs["cell_type"].iloc[0], heads=" | ".join(METRICS),
        rule=" | ".join("---:" for _ in METRICS), rows="\n".join(rows),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path, help="papalexi_thp1.h5ad")
    parser.add_argument("--out", type=Path, default=FOLDER)
    asked = parser.parse_args()
    print(make_example(asked.cells, asked.out))


if __name__ == "__main__":
    main()
