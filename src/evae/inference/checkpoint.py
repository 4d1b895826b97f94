"""A checkpoint folder or a Hub id becomes a model and its processor, or an error that names the bad file."""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModel, AutoProcessor

from evae.common.hub import explain_hub_errors
from evae.common.known_effects import FILE as EFFECTS
from evae.common.known_effects import KnownEffects
from evae.common.messages import first_line, number_of
from evae.inference.adapter import ADAPTER, base_of, merged
from evae.inference.example import FOLDER, is_example
from evae.models import register
from evae.models.contract_evae import EvaeError

CONFIG, PROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
MEND = "copy or download the folder again, or train it anew"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        model: a tokenizer, or a prior with its `tokenizer` inside.
        processor: its `EvaeProcessor`.
        name: the folder or Hub id it was asked for by.
        revision: the Hub commit it came from, "" for a folder.
        effects: what perturbations do in the cell types of training; None where the folder has no such file.
    """

    model: Any
    processor: Any
    name: str
    revision: str
    effects: KnownEffects | None = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer: the nested one of a prior, or the model itself."""
        return getattr(self.model, "tokenizer", self.model)

    @property
    def is_prior(self) -> bool:
        """Whether new cells can be drawn."""
        return hasattr(self.model, "sample_cells")

    def provenance(self) -> dict[str, Any]:
        """Name, revision and the versions of what computes, for results to carry."""
        versions = {name: version(name) for name in ("evae", "torch", "transformers")}
        return {"model": self.name, "revision": self.revision, "versions": versions}


def load_checkpoint(path_or_id: str | Path, revision: str | None = None) -> Checkpoint:
    """Load a model and its processor.

    Args:
        path_or_id: a folder written by training or `save_pretrained`, or a Hub id; of a whole model, or of an adapter,
            which is merged into the checkpoint that it stands on. Or "example", the model that the package carries.
        revision: branch, tag or commit of a Hub id.

    Raises:
        EvaeError: nothing there, a file that is missing or truncated, or a model of another kind.
    """
    register()  # the `evae` command has not done it yet
    folder = Path(path_or_id)
    commit = ""
    if is_example(path_or_id):
        folder = FOLDER
    if not folder.is_dir():
        folder = _download(str(path_or_id), revision)
        commit = folder.name  # the Hub cache names a snapshot's folder by its commit
    if (folder / ADAPTER).is_file():
        return _with_adapter(folder, str(path_or_id), commit)
    shapes = _check_files(folder, str(path_or_id))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _check_shapes(config, shapes, str(path_or_id))
        model = AutoModel.from_pretrained(folder, config=config, use_safetensors=True, trust_remote_code=False)
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except EvaeError as error:
        raise EvaeError(f"{path_or_id} cannot be loaded: {error}") from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise EvaeError(f"{path_or_id} cannot be loaded ({first_line(error).rstrip('.')}); {MEND}.") from error
    checkpoint = Checkpoint(model.eval(), processor, str(path_or_id), commit, _read_effects(folder, processor))
    _check_sizes(checkpoint)
    return checkpoint


def _with_adapter(folder: Path, name: str, commit: str) -> Checkpoint:
    """The checkpoint that an adapter stands on, with the adapter merged into it."""
    path, revision = base_of(folder, name)
    try:
        base = load_checkpoint(path, revision)
    except EvaeError as error:
        raise EvaeError(f"the adapter {name} stands on {path}, which cannot be loaded: {error}") from None
    if not base.is_prior:
        raise EvaeError(f"the adapter {name} stands on {path}, which is a tokenizer; fine-tune a prior.")
    _read_json(folder, PROCESSOR, name)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    effects = _read_effects(folder, processor)
    checkpoint = Checkpoint(merged(base.model, folder, name), processor, name, commit, effects)
    _check_sizes(checkpoint)
    return checkpoint


def _download(repo: str, revision: str | None) -> Path:
    parts = repo.split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~"):
        raise EvaeError(f"no such model folder: {repo}")
    with explain_hub_errors(repo, "model", revision):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=["*.json", "*.safetensors"]))


def _check_files(folder: Path, name: str) -> dict[str, list[int]]:
    """Raise unless every needed file is there and whole; transformers' messages do not name the culprit.

    Returns:
        the shape of every tensor in the weights.
    """
    config = _read_json(folder, CONFIG, name)
    kind = str(config.get("model_type"))
    if not kind.startswith("evae"):
        raise EvaeError(f"{name} holds a model of type '{kind}', not one of evae's; give another model.")
    _read_json(folder, PROCESSOR, name)
    shards = [WEIGHTS]
    if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        shards = sorted(set(_read_json(folder, INDEX, name).get("weight_map", {}).values()))
    shapes: dict[str, list[int]] = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise EvaeError(f"{INDEX} of {name} names {shard}, which is no file of that folder; do not trust it.")
        if not (folder / shard).is_file():
            raise EvaeError(f"{name} lacks the file {shard}; {MEND}.")
        try:
            with safe_open(folder / shard, framework="numpy") as tensors:
                shapes |= {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise EvaeError(
                f"{folder / shard} is truncated or damaged ({first_line(error).rstrip('.')}); {MEND}."
            ) from None
    return shapes


def _check_shapes(config: Any, shapes: dict[str, list[int]], name: str) -> None:
    """Raise unless the weights have the tensors that the configuration asks for, before these take memory."""
    with torch.device("meta"):
        wanted = AutoModel.from_config(config, trust_remote_code=False).state_dict()
    if missing := sorted(wanted.keys() - shapes.keys()):
        raise EvaeError(
            f"the weights lack {number_of(len(missing), 'tensor')} of the model (first: {missing[0]}); {MEND}."
        )
    for key, tensor in wanted.items():
        if list(tensor.shape) != shapes[key]:
            raise EvaeError(f"{key} is {shapes[key]} in the weights, {list(tensor.shape)} by {CONFIG}; {MEND}.")


def _read_effects(folder: Path, processor: Any) -> KnownEffects | None:
    """What the folder holds of known effects, if it holds any."""
    path = folder / EFFECTS
    if not path.is_file():
        return None
    try:
        known = KnownEffects.load(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise EvaeError(f"{path} is truncated or damaged ({first_line(error).rstrip('.')}); {MEND}.") from None
    if known.change.shape[1] != len(processor.genes):
        raise EvaeError(
            f"{path} is over {number_of(known.change.shape[1], 'gene')}, {PROCESSOR} lists {len(processor.genes)}; "
            f"{MEND}."
        )
    return known


def _read_json(folder: Path, file: str, name: str) -> dict[str, Any]:
    path = folder / file
    if not path.is_file():
        raise EvaeError(f"{name} lacks the file {file}; {MEND}.")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise EvaeError(f"{path} is truncated or damaged ({first_line(error).rstrip('.')}); {MEND}.") from None
    if not isinstance(content, dict):
        raise EvaeError(f"{path} is damaged (it holds no JSON object); {MEND}.")
    return content


def _check_sizes(checkpoint: Checkpoint) -> None:
    """The model and its processor belong together."""
    config, processor = checkpoint.model.config, checkpoint.processor
    pairs = [("n_genes", checkpoint.tokenizer.config.n_genes, len(processor.genes))]
    if checkpoint.is_prior:
        units = processor.perturbation_units or processor.perturbations
        pairs.append(("n_perturbations", config.n_perturbations, len(units)))
        pairs.append(("n_cell_types", config.n_cell_types, len(processor.cell_types)))
    for field, in_model, in_processor in pairs:
        if in_model != in_processor:
            raise EvaeError(
                f"{checkpoint.name}: {CONFIG} says {field} {in_model}, but {PROCESSOR} lists {in_processor}; "
                f"the two files come from different runs, {MEND}."
            )
