"""The checkpoint that is stored with the tests: what its script writes, small, and usable as a user would."""

import importlib.util
from pathlib import Path

import numpy as np
import yaml

import evae

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_tiny_checkpoint.py"


def script():
    spec = importlib.util.spec_from_file_location("make_tiny_checkpoint", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_is_what_the_script_writes(tiny_checkpoint, screen):
    made, prior = script(), evae.EvaeARConfig.from_pretrained(tiny_checkpoint)
    assert tiny_checkpoint == made.OUT
    for config, settings in ((prior.tokenizer_config, made.TOKENIZER), (prior, made.PRIOR)):
        for setting in (*made.SIZES, *settings):
            field, _, value = setting.removeprefix("model.").partition("=")
            assert getattr(config, field) == yaml.safe_load(value), field
    processor = evae.EvaeProcessor.from_pretrained(tiny_checkpoint)
    assert processor.genes == list(screen.var_names)
    assert processor.control == "control"
    assert set(processor.perturbations) == set(screen.obs["perturbation"])
    assert set(processor.cell_types) == set(screen.obs["cell_type"])


def test_is_small_and_holds_neither_code_nor_pickle(tiny_checkpoint):
    files = list(tiny_checkpoint.iterdir())
    assert sum(file.stat().st_size for file in files) < 1_000_000
    names = {"config.json", "generation_config.json", "preprocessor_config.json", "model.safetensors"}
    assert {file.name for file in files} == names


def test_is_trained(pipe, screen, controls):
    """It has learnt which genes are expressed: without training nothing of that is known."""
    screen = screen[screen.obs["cell_type"] == "type_A"]
    controls = controls[controls.obs["cell_type"] == "type_A"]
    predicted = pipe.predict(controls, perturbation=pipe.processor.perturbations[1], n_cells=100, progress=False)
    assert predicted.shape == (100, 60)
    real, drawn = (np.asarray(cells.X.mean(0)).ravel() for cells in (screen, predicted))
    assert np.corrcoef(np.log1p(real), np.log1p(drawn))[0, 1] > 0.4
