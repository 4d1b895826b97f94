"""Push a trained model or a dataset: gather what goes, prove that it works, upload it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from evae.common.files import write_text
from evae.common.known_effects import FILE as EFFECTS
from evae.common.messages import number_of
from evae.data.format import TREATMENTS, Dataset
from evae.data.streaming.loader import CellLoader
from evae.evaluation.report.model_index import benchmark, eval_entries
from evae.hub.dataset_card import published_card
from evae.hub.model_card import Described, card_names, model_card, what_it_reads
from evae.hub.revisions import revision
from evae.hub.upload import Bundle, upload
from evae.inference.adapter import ADAPTER
from evae.inference.checkpoint import Checkpoint, load_checkpoint
from evae.inference.decoder_labels import some_labels
from evae.inference.pipeline import Pipeline
from evae.inference.sampling import knows_by_context, reads_controls
from evae.models.contract_evae import EvaeError

MODEL_FILES = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "*_evae*.py"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", EFFECTS),
)
EVAL_RESULTS = ".eval_results/evae.yaml"
REPLACED_OF_MODEL = (*MODEL_FILES, "training/*", "evaluation/*", EVAL_RESULTS)
BENCHMARK = "eval.yaml"
DATASET_FILES = ("dataset.json", "split.json", "genes.parquet", "perturbations.parquet", "cell_types.parquet")
REPLACED_OF_DATASET = (*DATASET_FILES, TREATMENTS, "data/*.parquet", BENCHMARK)
SHARD = re.compile(r"data/[a-z]+-\d+-of-\d+\.parquet")
LOCAL_SETTINGS = ("output_dir", "resume", "overwrite")  # say nothing to anyone else


def push_run(
    run_dir: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    card: str | None = None,
    result: str | Path | None = None,
    dataset_id: str | Sequence[str] | None = None,
    save_card: str | Path | None = None,
) -> tuple[list[tuple[str, int]], str | None]:
    """Put a finished model on the Hub: weights, processor, code, card, settings and numbers, in one commit.

    Args:
        run_dir: folder of a run, or any folder that holds a model and its processor.
        repo_id: where to, "name/model"; made if it does not exist.
        private: make it private.
        dry_run: do everything but upload.
        card: whose facts the card tells, one of `card_names()`; by default the one named as the repository.
        result: folder that `evae evaluate` wrote, or its result.json.
        dataset_id: Hub id of the training data; of several datasets one for each, in their order.
        save_card: write the model card to this file too.

    Returns:
        What goes, as (path, bytes), and the address of the commit, None after a dry run.

    Raises:
        EvaeError: a model that does not load or generate, a secret in a file, ids for other datasets than it was
            trained on, or a failure of the Hub.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise EvaeError(f"no such folder: {folder}")
    check_id(repo_id, "model")
    if (folder / ADAPTER).is_file():
        raise EvaeError(
            f"{folder} is an adapter, which is no whole model; push what pipe.model.save_pretrained and "
            "pipe.processor.save_pretrained write of it, or upload it as it is with `hf upload`."
        )
    checkpoint = load_checkpoint(folder)
    smoke_test(checkpoint)
    files: dict[str, Path | bytes] = {p.name: p for pattern in MODEL_FILES for p in folder.glob(pattern)}
    check_code(files)
    given = [dataset_id] if isinstance(dataset_id, str) else list(dataset_id or ())
    settings = _public_settings(folder, given)
    if settings is not None:
        given = [name for name in _listed(settings["dataset"]) if "/" in name]  # such a name is one on the Hub
        files["training/settings.yaml"] = yaml.safe_dump(settings, sort_keys=False).encode()
    numbers = None if result is None else _add_result(Path(result), files)
    data = {name: revision(name, checkpoint.processor.genes) for name in given}
    if numbers is not None and given and (entries := eval_entries(numbers, given[0], data[given[0]])):
        files[EVAL_RESULTS] = yaml.safe_dump(entries, sort_keys=False).encode()
    card = card or next((name for name in card_names() if name == repo_id.split("/")[1]), None)
    text = model_card(repo_id, card, _describe(checkpoint, settings), numbers, data)
    files["README.md"] = text.encode()
    bundle = Bundle(repo_id, "model", files, REPLACED_OF_MODEL)
    bundle.check()
    if save_card is not None:
        write_text(Path(save_card), text)
    return bundle.sizes(), None if dry_run else upload(bundle, private, f"Upload {repo_id.split('/')[1]} with evae")


def push_dataset(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    licence: str = "unknown",
    as_benchmark: bool = False,
) -> tuple[list[tuple[str, int]], str | None]:
    """Put a dataset folder on the Hub in one commit; `load_dataset(repo_id, streaming=True)` reads it there.

    Args:
        folder: made by `evae prepare`.
        repo_id: where to, "name/dataset"; made if it does not exist.
        private: make it private.
        dry_run: do everything but upload.
        licence: the data's licence as the Hub names it, such as "cc-by-4.0".
        as_benchmark: write `eval.yaml` too, by which the Hub makes a benchmark with a leaderboard of it. The Hub checks
            that file as it comes, and takes frameworks only that it knows: until it knows "evae", it may refuse.

    Returns:
        What goes, as (path, bytes), and the address of the commit, None after a dry run.

    Raises:
        EvaeError: not a dataset folder, a shard that is missing or damaged, or a failure of the Hub.
    """
    path = Path(folder)
    if not path.is_dir():
        raise EvaeError(f"no such folder: {path}")
    check_id(repo_id, "dataset")
    dataset = Dataset.open(path)
    info = dataset.info
    shards = [str(shard["path"]) for shard in info.statistics["shards"]]
    if strange := next((shard for shard in shards if not SHARD.fullmatch(shard)), None):
        raise EvaeError(
            f"{path / 'dataset.json'} names a shard {strange}, which `evae prepare` does not; do not trust it."
        )
    _check_shards(dataset)
    files: dict[str, Path | bytes] = {name: path / name for name in (*DATASET_FILES, *shards)}
    files |= {TREATMENTS: path / TREATMENTS} if info.treatments else {}
    files["README.md"] = published_card((path / "README.md").read_text(), repo_id, info, licence).encode()
    if as_benchmark:
        files[BENCHMARK] = yaml.safe_dump(benchmark(repo_id.split("/")[1]), sort_keys=False).encode()
    bundle = Bundle(repo_id, "dataset", files, REPLACED_OF_DATASET)
    bundle.check()
    return bundle.sizes(), None if dry_run else upload(bundle, private, f"Upload {repo_id.split('/')[1]} with evae")


def smoke_test(checkpoint: Checkpoint) -> None:
    """Draw a few cells (a prior), or encode and rebuild some (a tokenizer).

    Raises:
        EvaeError: weights that are not finite, or what comes out is not cells.
    """
    broken = [name for name, tensor in checkpoint.model.state_dict().items() if not bool(tensor.isfinite().all())]
    if broken:
        raise EvaeError(f"{checkpoint.name} has weights that are NaN or infinite ({broken[0]}); train it anew.")
    pipe, processor = Pipeline(checkpoint, "cpu"), checkpoint.processor
    try:
        import anndata as ad

        counts = np.random.default_rng(0).poisson(2.0, (4, len(processor.genes))).astype(np.float32)
        labels = some_labels(checkpoint)
        obs = pd.DataFrame([labels] * len(counts), columns=["perturbation", "cell_type"]).rename(str)
        cells = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=list(processor.genes)))
        if checkpoint.is_prior:
            controls = cells if reads_controls(checkpoint) else None
            drawn = pipe.predict(controls, *labels, 4, progress=False)
        else:
            drawn = pipe.reconstruct(cells, progress=False)
    except (RuntimeError, ValueError, IndexError, KeyError) as error:
        raise EvaeError(f"{checkpoint.name} loads but does not generate ({error}); train it anew.") from error
    values = drawn.X.data
    if not np.isfinite(values).all() or not values.sum() > 0:
        raise EvaeError(f"{checkpoint.name} generates empty or broken cells; train it anew before you push it.")


def check_id(repo_id: str, kind: str) -> None:
    """Raise `EvaeError` unless this is a Hub id; `kind` stands in the message."""
    parts = repo_id.split("/")
    if len(parts) != 2 or not all(parts):
        raise EvaeError(f"'{repo_id}' is no Hub id; give one such as name/{kind}.")


def check_code(files: dict[str, Path | bytes]) -> None:
    """Every class that the configurations name has its file, so that the model loads where evae is not installed."""
    for name in ("config.json", "preprocessor_config.json"):
        path = files[name]
        assert isinstance(path, Path)
        for reference in json.loads(path.read_text()).get("auto_map", {}).values():
            module = f"{reference.rsplit('.', 1)[0]}.py"
            if module not in files:
                raise EvaeError(
                    f"{name} names {reference}, but {module} is missing; save the model again with save_pretrained."
                )


def _public_settings(folder: Path, given: list[str]) -> dict[str, Any] | None:
    """The settings of a run without the places of this machine; `given` are the Hub ids of its datasets."""
    path = folder / "settings.yaml"
    if not path.is_file():
        return None
    settings = {k: v for k, v in yaml.safe_load(path.read_text()).items() if k not in LOCAL_SETTINGS}
    places = _listed(settings["dataset"])
    if given and len(given) != len(places):
        raise EvaeError(
            f"{number_of(len(given), 'Hub id')} for the {number_of(len(places), 'dataset')} of {folder}; give "
            f"--dataset once for each of {', '.join(map(str, places))}, in this order."
        )
    names = given or [_public_name(place) for place in places]
    settings["dataset"] = names if isinstance(settings["dataset"], list) else names[0]
    for name in ("tokenizer", "checkpoint"):
        if settings.get(name):
            settings[name] = _public_name(settings[name])
    return settings


def _listed(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names


def _public_name(place: str) -> str:
    """A Hub id as it is, of a folder its name."""
    return Path(place).name if Path(place).exists() or len(Path(place).parts) != 2 else place


def _add_result(path: Path, files: dict[str, Path | bytes]) -> dict[str, Any]:
    """Add an evaluation's numbers and plots; returns the numbers."""
    path = path / "result.json" if path.is_dir() else path
    if not path.is_file():
        raise EvaeError(f"there is no result at {path}; give the folder that `evae evaluate` wrote.")
    try:
        numbers: dict[str, Any] = json.loads(path.read_text())
        numbers["summary"]
    except (ValueError, KeyError, TypeError):
        raise EvaeError(f"{path} is no result of `evae evaluate`; give the folder that it wrote.") from None
    files["evaluation/result.json"] = path
    files |= {f"evaluation/plots/{plot.name}": plot for plot in (path.parent / "plots").glob("*.png")}
    return numbers


def _describe(checkpoint: Checkpoint, settings: dict[str, Any] | None) -> Described:
    processor, model = checkpoint.processor, checkpoint.model
    size = (
        f"{number_of(sum(p.numel() for p in model.parameters()), 'parameter')}, "
        f"{number_of(len(processor.genes), 'gene')}, {number_of(len(processor.perturbations) - 1, 'perturbation')} and "
        f"the control `{processor.control}`, {number_of(len(processor.cell_types), 'cell type')}."
    )
    any_cell_type = checkpoint.is_prior and (reads_controls(checkpoint) or knows_by_context(checkpoint))
    return Described(
        model.config.model_type, size, settings, what_it_reads(model.config, checkpoint.effects), any_cell_type
    )


def _check_shards(dataset: Dataset) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for shard in dataset.info.statistics["shards"]:
        try:
            rows = pq.read_metadata(dataset.folder / shard["path"]).num_rows
        except (OSError, pa.ArrowInvalid) as error:
            raise EvaeError(f"the shard {shard['path']} is missing or damaged; prepare the dataset anew.") from error
        if rows != shard["rows"]:
            raise EvaeError(
                f"the shard {shard['path']} holds {number_of(rows, 'row')}, not {shard['rows']:,}; prepare anew."
            )
    for split, n_cells in dataset.info.n_cells.items():
        if n_cells:
            next(iter(CellLoader(dataset, split, batch_size=1, epochs=1, shuffle=False, prefetch=0)))
