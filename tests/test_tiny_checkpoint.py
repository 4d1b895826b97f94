"""The checkpoint that is stored with the tests: what its script writes, small, and usable as a user would."""

import importlib.util
from pathlib import Path

import numpy as np
import yaml

import evae
from evae.data.simulate import simulate_perturb_seq

FOLDER = Path(__file__).with_name("tiny_checkpoint")
SCRIPT = Path(__file__).parents[1] / "scripts" / "make_tiny_checkpoint.py"


def script():
    spec = importlib.util.spec_from_file_location("make_tiny_checkpoint", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_is_what_the_script_writes():
    made, prior = script(), evae.EvaeARConfig.from_pretrained(FOLDER)
    assert made.OUT == FOLDER
    for config, settings in ((prior.tokenizer_config, made.TOKENIZER), (prior, made.PRIOR)):
        for setting in (*made.SIZES, *settings):
            field, _, value = setting.removeprefix("model.").partition("=")
            assert getattr(config, field) == yaml.safe_load(value), field
    processor = evae.EvaeProcessor.from_pretrained(FOLDER)
    assert processor.genes == [f"GENE{i:04d}" for i in range(1, 61)]
    assert (len(processor.perturbations), processor.control) == (5, "control")
    assert processor.cell_types == ["type_A", "type_B"]


def test_is_small_and_holds_neither_code_nor_pickle():
    files = list(FOLDER.iterdir())
    assert sum(file.stat().st_size for file in files) < 1_000_000
    names = {"config.json", "generation_config.json", "preprocessor_config.json", "model.safetensors"}
    assert {file.name for file in files} == names


def test_is_trained():
    """It has learnt which genes are expressed: without training nothing of that is known."""
    screen = simulate_perturb_seq(n_cells=1_200, n_genes=60, n_cell_types=2, n_perturbations=4, seed=0)
    screen = screen[screen.obs["cell_type"] == "type_A"]
    controls = screen[screen.obs["perturbation"] == "control"].copy()
    pipe = evae.pipeline(FOLDER, device="cpu")
    predicted = pipe.predict(controls, perturbation=pipe.processor.perturbations[1], n_cells=100, progress=False)
    assert predicted.shape == (100, 60)
    real, drawn = (np.asarray(cells.X.mean(0)).ravel() for cells in (screen, predicted))
    assert np.corrcoef(np.log1p(real), np.log1p(drawn))[0, 1] > 0.4
