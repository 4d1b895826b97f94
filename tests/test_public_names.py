"""What users have written down keeps working: names they import, datasets and checkpoints on their disks."""

import importlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import evae
from evae.data.streaming.loader import CellLoader, DatasetInfo

STORED = Path(__file__).with_name("stored_dataset")  # written by evae 0.1.0, never made anew
PUBLIC = {
    "evae": (
        *("EvaeARConfig", "EvaeARForCausalLM", "EvaeConfig", "EvaeError", "EvaeFlowConfig", "EvaeFlowModel"),
        *(
            "EvaeMDLMConfig",
            "EvaeMDLMModel",
            "EvaeModel",
            "EvaeOutput",
            "EvaeProcessor",
            "Pipeline",
            "finetune",
            "pipeline",
        ),
        *("plot", "reversion", "__version__"),
    ),
    "evae.data": ("CellLoader", "Dataset", "DatasetInfo", "DatasetSplit", "prepare_dataset", "read_split"),
    "evae.data.anndata_io": ("read_split",),
    "evae.data.streaming.loader": ("CellLoader", "DatasetInfo", "resolve_dataset"),
    "evae.data.streaming.split_anndata": ("DatasetSplit", "read_split"),
    "evae.evaluation": ("SUITES", "EvaluationResult", "distribution_metrics", "evaluate", "model_index"),
    "evae.inference": ("calibrate", "predict_held_out"),
    "evae.plot": ("cells", "confusion", "counterfactual", "fold_changes", "gene", "metric", "ranking", "volcano"),
    "evae.reversion": ("PRESETS", "ReversionResult", "ScreenNames", "run"),
    "evae.study": ("Study", "read_study", "run_study"),
    "evae.app": ("serve",),
    "evae.hub": ("push_dataset", "push_run"),
    "evae.cli": ("main",),
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_can_be_imported(module):
    found = importlib.import_module(module)
    for name in PUBLIC[module]:
        assert hasattr(found, name) or importlib.import_module(f"{module}.{name}")


def test_a_dataset_of_the_first_version_is_read():
    info = DatasetInfo.load(STORED)
    assert info.n_cells == {"train": 93, "validation": 5, "test": 22}
    seen = dict.fromkeys(info.n_cells, 0.0)
    for split in seen:
        for batch in CellLoader(STORED, split, batch_size=16, epochs=1, drop_last=False, prefetch=0):
            seen[split] += float(batch["counts"].sum())
    dtype = json.loads((STORED / "dataset.json").read_text())["count_dtype"]
    for split, total in seen.items():
        rows = [pq.read_table(shard)["counts"].to_pylist() for shard in STORED.glob(f"data/{split}-*.parquet")]
        assert total == sum(int(np.frombuffer(row, dtype).sum()) for shard in rows for row in shard)


def test_a_checkpoint_of_the_first_version_predicts(tiny_checkpoint):
    pipe = evae.pipeline(tiny_checkpoint, device="cpu")
    cells = pipe.predict(None, pipe.processor.perturbations[1], pipe.processor.cell_types[0], 5, progress=False)
    assert cells.shape == (5, len(pipe.processor.genes))
