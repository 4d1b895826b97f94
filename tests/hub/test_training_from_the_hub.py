"""Training straight from the Hub: the same cells, the same steps, the same weights as from the folder."""

from pathlib import Path

import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import ModelCard

from evae.data.streaming.loader import CellLoader, DatasetInfo
from evae.hub import push_dataset, push_run

WRITER = "hf_writer"
DATASET, TOKENIZER, PRIOR = "evae/screen", "evae/screen-tokenizer", "evae/screen-ar"


@pytest.fixture
def on_the_hub(hub, login, screen_dataset) -> str:
    login(WRITER)
    push_dataset(screen_dataset, DATASET)
    login(None)
    return DATASET


def test_both_stages_end_to_end(
    on_the_hub, screen_dataset, trained_tokenizer, small_settings, run, login, hub, tmp_path
):
    """The tokenizer comes from the Hub too, and what was trained goes back there, naming both by their ids."""
    login(WRITER)
    push_run(trained_tokenizer, TOKENIZER)
    for place, tokenizer in ((on_the_hub, TOKENIZER), (screen_dataset, trained_tokenizer)):
        out = tmp_path / Path(place).name
        common = ["--dataset", place, "max_steps=8"]
        trained = run("train", "tokenizer", *small_settings["tokenizer"], *common, f"output_dir={out}/tokenizer")
        assert trained.code == 0, trained.err
        trained = run(
            "train", "prior", *small_settings["prior"], *common, f"tokenizer={tokenizer}", f"output_dir={out}/prior"
        )
        assert trained.code == 0, trained.err
    for stage in ("tokenizer", "prior"):
        here, there = (tmp_path / name / stage for name in (Path(screen_dataset).name, "screen"))
        for file in ("model.safetensors", "preprocessor_config.json", "config.json"):
            assert (here / file).read_bytes() == (there / file).read_bytes()
    push_run(tmp_path / "screen" / "prior", PRIOR)
    files = hub.repo(PRIOR).files()
    settings = yaml.safe_load(files["training/settings.yaml"])
    assert (settings["dataset"], settings["tokenizer"]) == (DATASET, TOKENIZER)
    assert ModelCard(files["README.md"].decode()).data.datasets == [DATASET]
    assert f"dataset={DATASET} tokenizer=" in files["README.md"].decode()


def test_decoded_cells_are_those_of_a_plain_stream(on_the_hub, screen_dataset, decoded):
    """What `load_dataset` streams, decoded by hand as the card says, is what the loader gives."""
    info = DatasetInfo.load(on_the_hub)
    rows = load_dataset(on_the_hub, split="test", streaming=True)
    loader = CellLoader(on_the_hub, "test", batch_size=1, shuffle=False, epochs=1, drop_last=False)
    for row, batch in zip(rows, loader, strict=True):
        genes, counts = decoded(screen_dataset, row)
        assert batch["gene_ids"][0, : len(genes)].tolist() == genes.tolist()
        assert batch["counts"][0, : len(genes)].tolist() == counts.tolist()
        assert not batch["counts"][0, len(genes) :].any()  # padding
        assert batch["perturbation_ids"].item() == row["perturbation"]
        assert batch["cell_type_ids"].item() == row["cell_type"]
    assert rows.features["perturbation"].names == info.perturbations


def test_warm_cache_outlives_the_server(on_the_hub, hub, offline):
    first = list(CellLoader(on_the_hub, "train", 64, epochs=1))
    hub.stop()
    offline()
    again = list(CellLoader(on_the_hub, "train", 64, epochs=1))
    assert len(first) == len(again)
    assert all((a["counts"] == b["counts"]).all() for a, b in zip(first, again, strict=True))
