"""Model cards: one template, the facts of the intended checkpoints, and what a checkpoint says about itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from evae.common.known_effects import KnownEffects
from evae.common.messages import number_of
from evae.evaluation.report.model_index import eval_results
from evae.models.contract_evae import EvaeError, near_matches

# The wheel carries model_cards as evae/model_cards (see pyproject.toml).
_PLACES = (Path(__file__).parents[3] / "model_cards", Path(__file__).parents[1] / "model_cards")
TAGS = ["biology", "genomics", "single-cell", "perturbation", "evae"]
_HUB = "https://huggingface.co/datasets/"
NOT_MEASURED, NOT_PUBLISHED = "not measured yet", "not published"

_USE = {
    "tokenizer": (
        'pipe.embed(cells)                        # AnnData of raw counts; adds cells.obsm["X_evae"]\n'
        "rebuilt = pipe.reconstruct(cells)        # what the codes keep",
        'batch = processor(cells)\ncodes = model.encode(batch["counts"], batch["gene_ids"])  # (cells, latents)',
    ),
    "prior": (
        "name = pipe.processor.perturbations[1]   # all that it knows; the control is the first\n"
        "predicted = pipe.predict(controls, perturbation=name, n_cells=500)  # AnnData of raw counts",
        "batch = processor(controls, perturbation=processor.perturbations[1], cell_type=processor.cell_types[0])\n"
        'counts = model.sample_cells(batch["perturbation_ids"], batch["cell_type_ids"], batch["library_size"])',
    ),
}
_INTENDED = {
    "tokenizer": "embedding cells, compressing them into codes, and training priors over these codes",
    "prior": "predicting the cells of a cell type after a perturbation from its controls, and planning experiments",
}


@dataclass(frozen=True)
class Described:
    """What a checkpoint says about itself, for its card.

    Attributes:
        model_type: of its configuration.
        size: a sentence on its parameters, genes and vocabularies.
        settings: the settings it was trained with; None if it has none.
        reads: a paragraph on what a prior is told, see `what_it_reads`.
        any_cell_type: whether cell types may be predicted that training did not see.
    """

    model_type: str
    size: str
    settings: dict[str, Any] | None
    reads: str = ""
    any_cell_type: bool = False


def what_it_reads(config: Any, effects: KnownEffects | None = None) -> str:
    """What a prior of this configuration is told of the cells to write, and its guidance; nothing of a tokenizer.

    Args:
        config: of the model.
        effects: those that its folder keeps.
    """
    if not hasattr(config, "n_perturbations"):
        return ""
    featured = f", or its feature vector ({config.perturbation_feature_source or 'of its own table'})"
    told = ["the name of the perturbation" + (featured if config.n_perturbation_features else "")]
    told.append(
        "the mean embedding of the cell type's controls" if config.cell_type_context else "that of the cell type"
    )
    if config.reads_treatments:
        told.append("kind, dose and time, as far as training knew them (with transformers: `treatments`)")
    if config.condition_on_batch:
        told.append("the experimental batch, where it is known")
    if config.source_cells:
        cells = "one control cell" if config.source_cells == 1 else f"{config.source_cells} control cells"
        told.append(f"{cells} for every cell that it writes")
    if config.condition_on_effect:
        told.append("the perturbation's mean effect in other cell types, or fold changes that the user gives")
    text = f"It reads {', '.join(told[:-1])}{',' if len(told) > 2 else ''} and {told[-1]}. "
    text += f"The default guidance scale is {config.guidance_scale:g}"
    if config.guidance_curve:
        curve = ", ".join(f"{distance:.3g} with {scale}" for scale, distance in config.guidance_curve.items())
        text += f", chosen on validation cells by the distance of the mean latents: {curve}"
    text += "." if config.sampling_temperature == 1 else f"; the temperature {config.sampling_temperature:g}."
    if effects is not None:
        text += (
            " `evae` moves the means of predictions towards what the training cells tell of the perturbation "
            f"(`effects.safetensors`; calibration of effects in other cell types {effects.calibration:.2f}); with "
            "transformers alone cells are as drawn."
        )
    return text


def card_names() -> list[str]:
    """The intended checkpoints."""
    facts = _facts()
    return [f"{dataset}-{model}" for dataset in facts["datasets"] for model in facts["models"]]


def model_card(
    repo_id: str,
    card: str | None = None,
    described: Described | None = None,
    result: dict[str, Any] | None = None,
    commits: Mapping[str, str | None] | None = None,
) -> str:
    """The README.md of a checkpoint.

    Args:
        repo_id: its Hub id.
        card: one of `card_names()`; None for a model of one's own, which then needs `described`.
        described: the checkpoint; None for one that is not trained yet.
        result: the content of an evaluation's result.json.
        commits: Hub ids of the training data, as far as it is there, each with its commit, None if not known.

    Raises:
        EvaeError: no such card, or a checkpoint of another kind than the card.
    """
    facts, commits = _facts(), commits or {}
    datasets = list(commits)
    if card is not None and card not in card_names():
        raise EvaeError(f"there is no model card '{card}'. {near_matches(card, card_names())}")
    data_name, _, model_name = (card or "").partition("-")
    if card is None:
        if described is None:
            raise ValueError("a card without facts needs a checkpoint")
        model_name = next((n for n, m in facts["models"].items() if m["model_type"] == described.model_type), "ar")
    model, data = facts["models"][model_name], facts["datasets"].get(data_name, {})
    if described is not None and described.model_type != model["model_type"]:
        raise EvaeError(f"the card '{card}' is for {model['model_type']}, the model is {described.model_type}.")
    name = repo_id.split("/")[-1]
    stage = model["stage"]
    title = f"{data['title']}, {model['title']}" if data else f"{name}, {model['title']}"
    body = Template((_folder() / "template.md").read_text()).substitute(
        title=title,
        about=model["about"],
        size=_size(described),
        knows=_knows(described),
        repo_id=repo_id,
        use_pipeline=_USE[stage][0],
        use_transformers=_USE[stage][1],
        intended=_INTENDED[stage],
        data=_data_text(data, commits),
        held_out=data.get("held_out", "see the training data"),
        command=_command(model, data, datasets, described),
        settings=_settings_text(described),
        evaluation=_evaluation(facts, stage, card, data_name, result),
    )
    first = datasets[0] if datasets else "own"
    title = data.get("title", first if datasets else "own data")
    # of data on the Hub they stand in .eval_results, see `push_run`
    numbers = None if result is None or datasets else eval_results(result, title, first)
    tokenizer = str((described.settings or {}).get("tokenizer") or "") if described else ""
    front = ModelCardData(
        license="mit",
        library_name="evae",
        pipeline_tag=model["pipeline_tag"],
        tags=TAGS,
        datasets=datasets or None,
        base_model=tokenizer if "/" in tokenizer else None,
        model_name=name if numbers else None,
        eval_results=numbers or None,
    )
    return f"---\n{front.to_yaml()}\n---\n\n{body}"


def _size(described: Described | None) -> str:
    if described is None:
        return "The checkpoint is not trained yet."
    return "\n\n".join(text for text in (described.size, described.reads) if text)


def _knows(described: Described | None) -> str:
    if described is not None and described.any_cell_type:
        return (
            "It knows the genes and perturbations that it was trained with, and refuses others. Cell types that it "
            "never saw are predicted from their control cells."
        )
    return "It knows the genes, perturbations and cell types that it was trained with, and refuses others."


def _folder() -> Path:
    found = next((place for place in _PLACES if (place / "template.md").is_file()), None)
    if found is None:
        raise EvaeError("this installation of evae lacks its model cards; install it again.")
    return found


def _facts() -> dict[str, Any]:
    facts: dict[str, Any] = yaml.safe_load((_folder() / "facts.yaml").read_text())
    return facts


def _data_text(data: dict[str, Any], commits: Mapping[str, str | None]) -> str:
    known: str = data.get("data", "Raw counts, see the vocabularies of the processor (`preprocessor_config.json`).")
    links = []
    for name, commit in commits.items():
        at = f" at commit [{commit[:8]}]({_HUB}{name}/tree/{commit})" if commit else ""
        links.append(f"[{name}]({_HUB}{name}){at}")
    return f"{known} On the Hub: {', '.join(links)}." if links else known


def _trained_on(datasets: Sequence[str], described: Described | None) -> list[str]:
    """The datasets of the training as a command names them: on the Hub, else in `data`."""
    named = (described.settings or {}).get("dataset") if described else None
    if isinstance(named, list):
        return [name if "/" in name else f"data/{name}" for name in named]
    return list(datasets) or ["data/screen"]


def _command(model: dict[str, Any], data: dict[str, Any], datasets: Sequence[str], described: Described | None) -> str:
    """What trains the model: its own settings where it has some, else the published ones."""
    first, *more = _trained_on(datasets, described)
    given = f"'dataset=[{','.join([first, *more])}]'" if more else f"dataset={first}"
    tokenizer = " tokenizer=runs/tokenizer" if model["stage"] == "prior" else ""
    config = "training/settings.yaml" if described and described.settings else "paper"
    settings = "" if described and described.settings else model["settings"]
    lines = []
    if not datasets and data:
        lines.append(f"evae prepare cells.h5ad {data['prepare']} --split split.json --genes hvg:2000 --out data/screen")
    if model["stage"] == "prior":
        own = model["tokenizer_settings"]
        lines.append(f"evae train tokenizer --config paper {given}{own} output_dir=runs/tokenizer")
    lines.append(f"evae train {model['stage']} --config {config} {given}{tokenizer}{settings} output_dir=runs/model")
    if model["stage"] == "prior":
        lines.append(f"evae predict runs/model --held-out {first} --out predicted.h5ad")
        lines.append(f"evae evaluate predicted.h5ad --dataset {first} --out evaluation")
    return "\n".join(lines)


def _settings_text(described: Described | None) -> str:
    if described is None or described.settings is None:
        return "The preset `paper` holds the published settings."
    s = described.settings
    return (
        f"{number_of(s['max_steps'], 'step')} of {s['batch_size']} cells, learning rate {s['learning_rate']:g}, weight "
        f"decay {s['weight_decay']:g}, {number_of(s['warmup_steps'], 'warm-up step')}, seed {s['seed']}; all settings "
        "are in `training/settings.yaml`."
    )


def _evaluation(
    facts: dict[str, Any], stage: str, card: str | None, data_name: str, result: dict[str, Any] | None
) -> str:
    """The table of published and own numbers; a number that does not exist is called so."""
    table = facts["evaluation"][stage]
    rows = [] if result is None else result["summary"]
    own = {
        r["metric"]: r["value"] for r in rows if (r["system"], r["group"], r["level"]) == ("model", "paper", "pooled")
    }
    published, other = facts["published"].get(card, {}), table["others"].get(data_name, {})
    lines = [
        f"| {table['heading']} | this checkpoint | published, same kind | published, {table['other']} |",
        "| --- | ---: | ---: | ---: |",
    ]
    for heading, metric in table["metrics"].items():
        value = own.get(metric)
        mine = NOT_MEASURED if value is None else f"{value:.4g}"
        lines.append(
            f"| {heading} | {mine} | {published.get(metric, NOT_PUBLISHED)} | {other.get(metric, NOT_PUBLISHED)} |"
        )
    note = "The two columns of published numbers are those of the paper, by its authors' models and code"
    note += f" (same kind: {published['by']})." if published else "."
    if result is not None:
        note += " Our numbers beside all baselines are in `evaluation/result.json`."
    return "\n".join([*lines, "", note])
