"""What a demo is going to do: the hold-out, the genes, the settings of both trainings, the folder."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pandas as pd

from evae.cli.files import check_folder
from evae.data.reading.h5ad import H5adCounts
from evae.inference.held_out import choose_split
from evae.models import EvaeConfig
from evae.models.contract_evae import EvaeError, look_up
from evae.training.prior import FROM_DATASET as PRIOR_GIVEN
from evae.training.prior import PRIORS
from evae.training.settings import (
    PriorSettings,
    Settings,
    check_model_settings,
    config_path,
    load_settings,
    stored_splits,
)
from evae.training.tokenizer import FROM_DATASET as TOKENIZER_GIVEN

MARKER = "demo.json"
MAX_GENES = 1_000  # wider files are cut to this many highly variable genes, to stay within minutes on a CPU


def choose_data(source: Path, given: dict[str, Any]) -> tuple[Any, str, str]:
    """The split, where it comes from, and the genes."""
    file = H5adCounts(source, given["layer"])
    try:
        labels = {}
        for key in ("perturbation_key", "cell_type_key"):
            codes, names = file.labels(given[key])
            labels[key] = pd.Series([names[c] for c in codes])
        n_genes = file.n_genes
    finally:
        file.close()
    genes = given["genes"] or ("all" if n_genes <= MAX_GENES else f"hvg:{MAX_GENES}")
    if given["split"] is not None:
        return given["split"], f"what {given['split']} says", genes
    perturbations = (given["hold_out_perturbations"] or "").split(",")
    split, reason = choose_split(
        labels["cell_type_key"],
        labels["perturbation_key"],
        given["control"],
        hold_out_cell_type=given["hold_out_cell_type"],
        hold_out_perturbations=[p.strip() for p in perturbations if p.strip()],
        stored=stored_splits(),
    )
    return split, reason, genes


def stage_settings(stage: str, out: Path, given: dict[str, Any], overrides: list[str]) -> Settings:
    """The settings of one training, checked before anything is made."""
    places = {"dataset": out / "dataset", "output_dir": out / stage}
    if stage == "prior":
        places["tokenizer"] = out / "tokenizer"
    own = [f"{key}={json.dumps(str(path))}" for key, path in places.items()]  # quoted, for values are YAML
    own += [f"seed={given['seed']}", "resume=true"]
    settings = load_settings(stage, config_path(given["preset"], stage), [*own, *overrides])
    if stage == "tokenizer":
        check_model_settings(settings.model, EvaeConfig, TOKENIZER_GIVEN)
    else:
        model_type = cast(PriorSettings, settings).model_type
        look_up([model_type], list(PRIORS), "model_type")
        config_class, _ = PRIORS[model_type]
        check_model_settings(settings.model, config_class, PRIOR_GIVEN)
    return settings


def claim_folder(out: Path, given: dict[str, Any], overwrite: bool) -> None:
    """Make the demo's folder, or go on in one that was made by the same command."""
    marker = out / MARKER
    if marker.is_file() and not overwrite:
        before = json.loads(marker.read_text())
        changed = [name for name in given if before.get(name) != given[name]]
        if changed:
            raise EvaeError(
                f"{out} holds a demo with another {' and '.join(changed)}; choose another --out, or pass --overwrite."
            )
        return
    check_folder(out, MARKER, overwrite)
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    marker.write_text(json.dumps(given, indent=1))
