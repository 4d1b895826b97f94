"""What a study consists of: a YAML file becomes trainings with all their settings, and folder names from a hash.

    dataset: data/screen
    output_dir: runs/study
    seeds: [0, 1]
    heads: [ce-quantile, hurdle, mse, nb]
    tokenizer: {config: small, max_steps: 1000}     # of all tokenizers: a preset or file, and settings on top
    tokenizers:                                     # in what they differ
      FSQ: {model.quantizer: fsq}
      Gaussian: {model.quantizer: gaussian}
      none: counts                                  # no latents: the priors work on the counts themselves
    prior: {config: small}
    priors:
      AR: {model_type: evae_ar}
      flow: {model_type: evae_flow}
    sampling:                                       # ways to draw from each prior; one plain way if left out
      plain: {}
      guidance 2: {guidance_scale: 2}
      told: {effects_by: ridge}                     # the effects that `evae effects --method ridge` estimates

A prior goes with every tokenizer that it can read: codes or Gaussian latents. Without `priors:` the tokenizers are
compared alone. In the place of `dataset:` a study may name several splits, see `evae.study.splits`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import yaml

from evae.common.messages import first_line
from evae.data.format import Dataset, DatasetInfo
from evae.effects.features import METHODS
from evae.models.configuration_evae import HEADS, EvaeConfig
from evae.models.contract_evae import EvaeError, look_up, near_matches
from evae.study.splits import as_file_name, named_splits
from evae.training.conditions import check_learnable
from evae.training.feature_tables import read_feature_table
from evae.training.prior import FROM_DATASET as PRIOR_GIVEN
from evae.training.prior import NO_TOKENIZER, PRIORS
from evae.training.settings import PriorSettings, Settings, check_model_settings, config_path, load_settings
from evae.training.tokenizer import FROM_DATASET as TOKENIZER_GIVEN
from evae.training.tokenizer import fingerprint

# Settings that leave the trained model as it is, and so are no part of a folder's name.
WITHOUT_EFFECT = (
    *("dataset", "output_dir", "tokenizer", "resume", "overwrite"),
    *("log_every", "save_every", "keep_checkpoints", "report_to"),
)
PLACES = ("dataset", "output_dir", "tokenizer", "seed", "resume", "overwrite", "model.head")
EFFECTS_BY = "effects_by"  # way of sampling
SAMPLING_IS_PLAIN: Mapping[str, dict[str, Any]] = {"": {}}


@dataclass
class Study:
    """A study as its YAML file says it; see above.

    Attributes:
        dataset: dataset folder or Hub id, with held-out cells; left out where there are `splits`.
        output_dir: where trainings, results and tables go.
        tokenizers, priors: name -> settings on top of `tokenizer` and `prior`; "counts" for no tokenizer. Without
            priors the tokenizers are compared alone.
        heads: output heads of the tokenizers.
        seeds: of the trainings and of the drawn cells.
        tokenizer, prior: settings that all share; `config` names a preset or a file.
        sampling: name -> options of the priors' `sample`, and `effects_by`: a method of `evae.effects`, by which the
            effects of the held-out perturbations are estimated (with `features` those of unseen ones) and told.
        prepare, splits: what is held out in turn, see `evae.study.splits`.
        suite: of `evae.evaluation.evaluate`.
        extra_baselines: of the same, such as scvi.
        features: of the same: a table of vectors, for baselines of perturbations that were never seen.
        evaluation_seeds: over how many draws and splits an evaluation averages.
        max_minutes: begin no training and no evaluation after so many minutes; 0 is no limit.
    """

    dataset: str = ""
    output_dir: str = ""
    tokenizers: dict[str, dict[str, Any]] = field(default_factory=dict)
    priors: dict[str, dict[str, Any]] = field(default_factory=dict)
    heads: list[str] = field(default_factory=lambda: ["ce-quantile"])
    seeds: list[int] = field(default_factory=lambda: [0])
    tokenizer: dict[str, Any] = field(default_factory=dict)
    prior: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, dict[str, Any]] = field(default_factory=lambda: dict(SAMPLING_IS_PLAIN))
    prepare: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, Any] = field(default_factory=dict)
    suite: str = "robust"
    extra_baselines: list[str] = field(default_factory=list)
    features: str = ""
    evaluation_seeds: int = 3
    max_minutes: float = 0.0

    def __post_init__(self) -> None:
        self.splits = named_splits(self.splits)
        where = () if self.splits else ("dataset",)
        for name in (*where, "output_dir", "tokenizers", "heads", "seeds", "sampling"):
            if not getattr(self, name):
                raise EvaeError(
                    f"{name} is not set; add {name}: to the study's YAML file, or {name}=... to the command."
                )
        for axis in ("tokenizers", "priors", "sampling"):
            value = getattr(self, axis)
            if axis == "tokenizers" and isinstance(value, dict):
                value = {k: {NO_TOKENIZER: True} if v == NO_TOKENIZER else v for k, v in value.items()}
            if not isinstance(value, dict) or not all(isinstance(v or {}, dict) for v in value.values()):
                raise EvaeError(f"{axis} must hold lines `name: {{setting: value}}`; fix the study's YAML file.")
            setattr(self, axis, {str(name): dict(own or {}) for name, own in value.items()})
        look_up(self.heads, HEADS, "head")
        look_up([own[EFFECTS_BY] for own in self.sampling.values() if EFFECTS_BY in own], METHODS, EFFECTS_BY)


@dataclass(frozen=True)
class Training:
    """One training of a study.

    Attributes:
        stage: "tokenizer" or "prior".
        labels: its place in the cross product: split, tokenizer, head, seed, and of a prior its name.
        settings: complete, with its folder in `output_dir`.
        data: fingerprint of the dataset and its split.
        tokenizer: of a prior, the training of its tokenizer.
    """

    stage: str
    labels: dict[str, Any]
    settings: Settings
    data: str
    tokenizer: "Training | None" = None

    @property
    def folder(self) -> Path:
        """Where it trains; the name ends with a hash of all settings that have an effect."""
        return Path(self.settings.output_dir)


def read_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study from its YAML file.

    Args:
        path: the file.
        overrides: "key=value" for keys of the file, such as dataset=data/screen or prepare.files=screen.h5ad; values
            are YAML.

    Raises:
        EvaeError: no such file, no YAML mapping, an unknown key, something missing.
    """
    path = Path(path)
    if not path.is_file():
        raise EvaeError(f"the study {path} does not exist; give an existing YAML file.")
    try:
        values = yaml.safe_load(path.read_text())
        given = [text.partition("=") for text in overrides]
        changes = {key: yaml.safe_load(text) for key, _, text in given}
    except yaml.YAMLError as error:
        reason = first_line(error)
        raise EvaeError(f"{path} or an override is no valid YAML ({reason}); fix it.") from None
    if not isinstance(values, dict):
        raise EvaeError(f"{path} must hold `key: value` lines; fix the file.")
    for key, separator, _ in given:
        if not separator:
            raise EvaeError(f"'{key}' is no setting; write key=value.")
    for key, value in changes.items():
        outer, _, inner = key.partition(".")
        values[outer] = {**(values.get(outer) or {}), inner: value} if inner else value
    known = [f.name for f in fields(Study)]
    for key in values:
        if key not in known:
            raise EvaeError(f"unknown key '{key}' in a study. {near_matches(str(key), known)}")
    return Study(**values)


def plan(study: Study, dataset: Dataset | None = None, split: str = "") -> tuple[list[Training], list[str]]:
    """All trainings of a study over its dataset, every tokenizer before its priors, all of the first seed first.

    Args:
        study: from `read_study`.
        dataset: that of the study, if it is open already.
        split: the name of the split that the dataset holds out, where there are several.

    Returns:
        The trainings, and one sentence for every pair of tokenizer and prior that was left out.

    Raises:
        EvaeError: settings that do not exist or do not fit.
    """
    info = Dataset.open(dataset or study.dataset).info
    data = fingerprint(info, json.dumps(info.split, sort_keys=True))
    trainings, left_out = [], []
    for seed in study.seeds:
        for name, own in study.tokenizers.items():
            without = NO_TOKENIZER in own
            for head in [NO_TOKENIZER] if without else study.heads:
                labels = {"split": split, "tokenizer": name, "head": head, "seed": int(seed)}
                tokenizer = None if without else _tokenizer(study, {**study.tokenizer, **own}, labels, data)
                trainings += [tokenizer] if tokenizer else []
                for prior_name, prior_own in study.priors.items():
                    prior = _prior(study, {**study.prior, **prior_own}, labels | {"prior": prior_name}, tokenizer, data)
                    reason = (_misfit(tokenizer, prior) if tokenizer else None) or _unlearnable(info, prior)
                    if reason:
                        left_out.append(f"{name} + {prior_name} was left out: {reason}")
                    else:
                        trainings.append(prior)
    if study.priors and not any(t.stage == "prior" for t in trainings):
        raise EvaeError("no prior of the study fits any of its tokenizers: " + "; ".join(dict.fromkeys(left_out)))
    if not trainings:
        raise EvaeError("without a tokenizer there is nothing to compare but priors; add priors: to the study's file.")
    return trainings, list(dict.fromkeys(left_out))


def _tokenizer(study: Study, wanted: dict[str, Any], labels: dict[str, Any], data: str) -> Training:
    settings = _settings("tokenizer", wanted, study, {"model.head": labels["head"], "seed": labels["seed"]})
    check_model_settings(settings.model, EvaeConfig, TOKENIZER_GIVEN)
    settings.output_dir = str(_folder(study, "tokenizers", labels, settings, data))
    return Training("tokenizer", labels, settings, data)


def _prior(
    study: Study, wanted: dict[str, Any], labels: dict[str, Any], tokenizer: Training | None, data: str
) -> Training:
    settings = cast(PriorSettings, _settings("prior", wanted, study, {"seed": labels["seed"]}))
    look_up([settings.model_type], list(PRIORS), "model_type")
    check_model_settings(settings.model, PRIORS[settings.model_type][0], PRIOR_GIVEN)
    settings.tokenizer = str(tokenizer.folder) if tokenizer else NO_TOKENIZER
    over = data + Path(settings.tokenizer).name
    settings.output_dir = str(_folder(study, "priors", labels, settings, over))
    return Training("prior", labels, settings, data, tokenizer)


def _settings(stage: str, wanted: dict[str, Any], study: Study, more: dict[str, Any]) -> Settings:
    """Preset, then the study's own settings, then place and seed; `model.x: y` wins over `model: {x: y}`."""
    flat = {f"model.{k}": v for k, v in (wanted.get("model") or {}).items()}
    flat |= {k: v for k, v in wanted.items() if k not in ("config", "model")}
    for key in flat:
        if key in PLACES:
            raise EvaeError(f"{key} is set by the study; leave it out of its {stage} settings.")
    flat |= {**more, "dataset": study.dataset, "resume": True}
    config = wanted.get("config")
    overrides = [f"{key}={json.dumps(value)}" for key, value in flat.items()]
    return load_settings(stage, None if config is None else config_path(str(config), stage), overrides)


def _misfit(tokenizer: Training, prior: Training) -> str | None:
    """Why a prior cannot read a tokenizer's output, if so."""
    config_class, _ = PRIORS[cast(PriorSettings, prior.settings).model_type]
    try:
        config_class(tokenizer_config=EvaeConfig(**tokenizer.settings.model))
    except EvaeError as error:
        return str(error)
    return None


def _unlearnable(info: DatasetInfo, prior: Training) -> str | None:
    """Why a prior cannot learn what is held out, if so."""
    settings = cast(PriorSettings, prior.settings)
    table = settings.perturbation_features
    try:
        featured = set(read_feature_table(Path(table))[0]) if table else set()
        check_learnable(info, featured, settings.combination_sign)
    except EvaeError as error:
        return str(error)
    return None


def _folder(study: Study, stage: str, labels: dict[str, Any], settings: Settings, more: str) -> Path:
    default = type(settings)().to_dict()  # left out, so that a setting that is new tomorrow changes no name
    kept = {k: v for k, v in settings.to_dict().items() if k not in WITHOUT_EFFECT and v != default[k]}
    text = json.dumps([kept, more], sort_keys=True)
    words = [str(labels[k]) for k in ("split", "tokenizer", "head", "prior") if labels.get(k)]
    name = "-".join(map(as_file_name, words))
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return Path(study.output_dir) / stage / f"{name}-seed{labels['seed']}-{digest}"
