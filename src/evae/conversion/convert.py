"""A run folder becomes a model folder: configuration, weights, processor."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from evae.common.files import atomic_folder, explain_disk_errors
from evae.conversion.names import Names, read_names
from evae.conversion.prior import counts_fields, has_latents, is_told_by_features, model_type, prior_fields, prior_state
from evae.conversion.run_folder import Run
from evae.conversion.tokenizer import tokenizer_fields, tokenizer_state
from evae.conversion.weights import Weights, in_float32
from evae.models import EvaeConfig, EvaeModel, EvaeProcessor
from evae.models.contract_evae import EvaeError, near_matches

VAE = "vae"


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        model: ours, in evaluation mode.
        processor: its processor.
        source: the file of the weights.
        n_tensors: how many there were.
        left_out: names of tensors that the model does without, and why.
        told: where the library sizes come from.
    """

    model: Any
    processor: EvaeProcessor
    source: str
    n_tensors: int
    left_out: dict[str, str]
    told: str


def convert(
    run: str | Path,
    genes: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    features: str | Path | None = None,
    perturbation_key: str | None = None,
    cell_type_key: str | None = None,
    control: str | None = None,
) -> Conversion:
    """Convert a run of the authors' training into a model folder that computes the same.

    Args:
        run: folder of the run.
        genes: h5ad file that it was trained on; or JSON or text with the names, see `evae.conversion.names`.
        out: folder to write; replaced if it exists.
        tokenizer: run folder of a prior's VAE, for its settings, if it is not where the prior's settings say.
        features: table of feature vectors by name, where the prior was trained with such.
        perturbation_key: obs column of the perturbation; that of the run's settings if None.
        cell_type_key: obs column of the cell type; "cell_type" if None.
        control: name of the control; that of the run's settings if None.

    Raises:
        EvaeError: something is missing, does not fit, or has no counterpart here. Then nothing is written.
    """
    opened = Run.open(Path(run))
    is_vae = opened.kind == VAE
    kind = "" if is_vae else model_type(opened)
    names = read_names(Path(genes), opened, (perturbation_key, cell_type_key), needs_labels=not is_vae)
    if features is not None:
        names = replace(names, features=_feature_table(Path(features), opened))
    weights = opened.weights()
    model, state = _tokenizer(opened, weights, names) if is_vae else _prior(opened, weights, names, kind, tokenizer)
    weights.check_all_used()
    model.load_state_dict(in_float32(state), strict=True)
    processor = make_processor(names, _control(names, opened, control, needed=not is_vae), has_units=not is_vae)
    with explain_disk_errors(f"the model {out}"), atomic_folder(out) as folder:
        model.eval().save_pretrained(folder)
        processor.save_pretrained(folder)
    return Conversion(model, processor, weights.source, len(weights.tensors), weights.left_out, names.told)


def _tokenizer(run: Run, weights: Weights, names: Names) -> tuple[Any, dict[str, Tensor]]:
    config = _configuration(tokenizer_fields(run, len(names.genes)), names)
    _take_library(weights)
    return EvaeModel(config), tokenizer_state(weights, config, run.model)


def _prior(
    run: Run, weights: Weights, names: Names, kind: str, tokenizer: str | Path | None
) -> tuple[Any, dict[str, Tensor]]:
    from transformers import AutoConfig, AutoModel

    from evae.models import register

    register()
    state: dict[str, Tensor] = {}
    if has_latents(run):
        vae = _vae_of(run, tokenizer)
        inner = _configuration(tokenizer_fields(vae, len(names.genes)), names)
        _take_library(weights.under("vae."))
        own = tokenizer_state(weights.under("vae."), inner, vae.model)
        state = {f"tokenizer.{name}": tensor for name, tensor in own.items()}
    else:
        inner = _configuration(counts_fields(run, len(names.genes)), names)
    config = AutoConfig.for_model(
        kind, tokenizer_config=inner, n_perturbations=len(names.units), n_cell_types=len(names.cell_types),
        **prior_fields(run),
    )  # fmt: skip
    return AutoModel.from_config(config), state | prior_state(weights, config, run, names)


def _vae_of(run: Run, tokenizer: str | Path | None) -> Run:
    """The run of a prior's VAE: the folder given, or that of `vae_path`, there or beside the prior's own."""
    path = Path(run.model.get("vae_path", ""))
    places = [Path(tokenizer)] if tokenizer is not None else [path, run.path.resolve().parent / path.name]
    found = [place for place in places if place.is_dir()]
    if not found:
        raise EvaeError(
            f"the run folder of the prior's VAE, {places[0]}, is not there; its settings are needed: name it with "
            "--tokenizer."
        )
    vae = Run.open(found[0])
    if vae.kind != VAE:
        raise EvaeError(f"{found[0]} is a run of type {vae.kind}, not the prior's VAE; name another with --tokenizer.")
    return vae


def _take_library(weights: Weights) -> None:
    """Mean and standard deviation of the log library size: `dataset_stats.json` holds them too."""
    for name in ("log_lib_prior_mu", "log_lib_prior_std"):
        if name in weights:
            weights.leave_out(name, "library sizes are drawn by the processor")


def _configuration(fields: dict[str, Any], names: Names) -> EvaeConfig:
    if names.median is None:
        if fields["count_input"] == "normalized":
            raise EvaeError(
                "the run normalizes counts to a median library size, which dataset_stats.json does not hold; give the "
                "h5ad file that it was trained on as --genes."
            )
        return EvaeConfig(**fields)
    return EvaeConfig(**fields, median_library_size=names.median)


def _control(names: Names, run: Run, control: str | None, needed: bool) -> str | None:
    own = run.settings.part("dataset").get("ctrl_label", "non-targeting")
    if control is None and own not in names.perturbations and not needed:
        return None
    wanted = own if control is None else control
    if wanted not in names.perturbations:
        raise EvaeError(
            f"the control '{wanted}' is not among the perturbations; name it with --control. "
            f"{near_matches(wanted, list(names.perturbations))}"
        )
    return wanted


def _feature_table(file: Path, run: Run) -> dict[str, Any]:
    if run.kind == VAE or not is_told_by_features(run.model):
        raise EvaeError("this run does not know perturbations by feature vectors; leave --features out.")
    from evae.training.feature_tables import read_feature_table

    table = read_feature_table(file)
    return dict(zip(table.names, table.vectors, strict=True))


def make_processor(names: Names, control: str | None, has_units: bool) -> EvaeProcessor:
    """The processor of a converted model; no name is taken for a combination."""
    return EvaeProcessor(
        genes=names.genes,
        ensembl_ids=names.ensembl_ids,
        perturbations=names.perturbations,
        cell_types=names.cell_types,
        perturbation_units=names.units if has_units and names.features else None,
        control=control,
        library_size_quantiles=names.library_sizes,
        combination_sign="",
    )
