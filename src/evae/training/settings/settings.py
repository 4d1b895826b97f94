"""The settings of a training run: flat, typed, one dataclass a stage, checked before anything starts.

A YAML file gives values, `key=value` and `model.key=value` override them. Nothing is ignored: a key that
does not exist or a value of the wrong type raises `EvaeError`.
"""

import dataclasses
import inspect
import math
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from evae.models.contract_evae import EvaeError, near_matches

TRACKERS = ("none", "tensorboard", "wandb", "trackio")
PRECISIONS = ("auto", "no", "bf16")
FINAL_WEIGHTS = ("last", "best")
COUPLINGS = ("optimal-transport", "random")
SPACES = ("latents", "pca")
BY_NUMBER = -1  # of thinned copies: by the number of training cells
FEW_CELLS = 10_000  # below it every cell is shown thinned as well
THINNED_COPIES = 5


@dataclass
class Settings:
    """What both stages share. Batch sizes and worker counts are per process (rank)."""

    dataset: str | list[str] = ""  # dataset folder made by `evae prepare`, or a Hub id; or several: [data/a,data/b]
    dataset_weights: list[float] = field(default_factory=list)  # cells of each in a batch, in proportion: [3,1]
    output_dir: str = ""  # where checkpoints, the log and the final model go
    model: dict[str, Any] = field(default_factory=dict)  # fields of the model's configuration
    max_steps: int = 75_000  # optimiser updates
    batch_size: int = 128  # cells per rank and forward pass
    gradient_accumulation_steps: int = 1  # forward passes an update
    learning_rate: float = 6e-4  # at the end of the warm-up
    weight_decay: float = 1e-3  # on weight matrices; never on norms, biases and embeddings
    warmup_steps: int = 2_500  # updates
    max_grad_norm: float = 5.0  # gradients are clipped to this total norm
    ema_decay: float = 0.0  # moving average of the weights for validation and the final save; 0 is off
    mixed_precision: str = "auto"  # auto (bf16 on a GPU, and on a CPU with AVX512_BF16 or AMX), no, bf16
    compile: bool = False  # torch.compile the model: minutes at the start, faster steps on a GPU
    time_steps: bool = False  # log the seconds a step takes for data, forward, backward and optimizer
    seed: int = 0  # of the initial weights, the order of the cells and all that is drawn
    log_every: int = 20  # updates between lines of log.jsonl; the only steps at which the host waits
    eval_every: int = 1_000  # updates between validations
    eval_cells: int = 2_048  # validation cells used at most
    save_every: int = 1_000  # updates between checkpoints; a new best validation loss is saved as well
    keep_checkpoints: int = 2  # newest checkpoints kept; the best one is kept besides
    final_weights: str = "last"  # last or best (lowest validation loss): which weights the run ends with
    report_to: str = "none"  # none, tensorboard, wandb, trackio
    resume: bool = False  # go on with the run in output_dir; starts one where there is none
    overwrite: bool = False  # delete the run in output_dir and start anew

    # Settings that leave the weights as they are, so they may change when a run is resumed; see `former_run.py`.
    MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        *("output_dir", "log_every", "save_every", "keep_checkpoints", "report_to", "resume", "overwrite"),
        *("compile", "time_steps"),
    )

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            if name != "MAY_CHANGE":
                setattr(self, name, _typed(name, getattr(self, name), hint))
        self._check_ranges()

    def _check_ranges(self) -> None:
        at_least_one = (
            *("max_steps", "batch_size", "gradient_accumulation_steps", "log_every"),
            *("eval_every", "eval_cells", "save_every", "keep_checkpoints"),
        )
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise EvaeError(f"{name} is {getattr(self, name)}; give at least 1.")
        if (cells := getattr(self, "calibration_cells", 2)) < 2:
            raise EvaeError(f"calibration_cells is {cells}; give at least 2.")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise EvaeError(f"{name} is {getattr(self, name)}; give a number above 0.")
        for name in ("weight_decay", "warmup_steps", "seed", "max_epochs"):
            if getattr(self, name, 0) < 0:
                raise EvaeError(f"{name} is {getattr(self, name)}; give 0 or more.")
        if (copies := getattr(self, "thinned_copies", 0)) < BY_NUMBER:
            raise EvaeError(f"thinned_copies is {copies}; give 0 or more, or {BY_NUMBER} for as many as suit.")
        if not 0 <= self.ema_decay < 1:
            raise EvaeError(f"ema_decay is {self.ema_decay}; give 0 (off) up to below 1, for example 0.999.")
        choices = {"report_to": TRACKERS, "mixed_precision": PRECISIONS, "final_weights": FINAL_WEIGHTS}
        choices |= {"coupling": COUPLINGS, "coupling_space": SPACES}
        for name, known in choices.items():
            if getattr(self, name, known[0]) not in known:
                raise EvaeError(f"{name} is '{getattr(self, name)}'; give one of {', '.join(known)}.")
        if self.resume and self.overwrite:
            raise EvaeError("resume and overwrite are both true; set one of them to false.")

    @property
    def datasets(self) -> list[str]:
        """The dataset or datasets, as a list."""
        return [self.dataset] if isinstance(self.dataset, str) else self.dataset

    def require(self, *names: str) -> None:
        """Raise `EvaeError` if one of these settings was left empty."""
        for name in names:
            if not getattr(self, name):
                raise EvaeError(f"{name} is not set; add {name}=... to the command or the YAML file.")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, as written to settings.yaml."""
        return dataclasses.asdict(self)


@dataclass
class TokenizerSettings(Settings):
    """Settings of stage 1; `model` holds fields of `EvaeConfig`. The defaults are the published values."""

    calibration_cells: int = 2_048  # training cells that set the bottleneck's scale before the first step
    perturbation_features: str = ""  # npz, csv, tsv or parquet of vectors by name, for model.regression_weight


@dataclass
class PriorSettings(Settings):
    """Settings of stage 2; `model` holds fields of the prior's configuration. Published values."""

    tokenizer: str = ""  # folder or Hub id of a trained tokenizer; "counts" for a prior without latents
    model_type: str = "evae_ar"  # which prior
    perturbation_features: str = ""  # npz, csv, tsv or parquet of vectors by name: then unseen names can be asked for
    combination_sign: str = "+"  # A+B is A and B at once, where one of them is a name by itself; "" for no combinations
    coupling: str = (
        "optimal-transport"  # which control a perturbed cell is paired with, with model.source_cells=1; random
    )
    max_epochs: float = (
        0.0  # the run ends after so many passes over the training cells, if not after max_steps; 0: never
    )
    coupling_space: str = "latents"  # where optimal transport measures distances: latents of the tokenizer, or pca
    thinned_copies: int = (
        0  # further encodings of every training cell, with fewer molecules; -1: 5 where there are fewer than 10,000
    )
    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    warmup_steps: int = 3_000
    max_grad_norm: float = 1.0

    MAY_CHANGE: ClassVar[tuple[str, ...]] = (*Settings.MAY_CHANGE, "max_epochs")  # what it does is in max_steps

    @property
    def follow_cells(self) -> bool:
        """Whether some depend on the number of training cells."""
        return self.max_epochs > 0 or self.thinned_copies == BY_NUMBER

    def suited_to(self, n_cells: int, ranks: int) -> Self:
        """The settings with `thinned_copies` by the number of cells, and `max_steps` held to `max_epochs`.

        A small set is learned by heart long before a preset's `max_steps`, at a learning rate that never fell; less so
        where its cells are also shown thinned. The copies count as cells of a pass. The warm-up takes half of the
        steps at most.

        Args:
            n_cells: training cells.
            ranks: processes that train together.
        """
        copies = copies_for(n_cells) if self.thinned_copies == BY_NUMBER else self.thinned_copies
        shown, at_once = n_cells * (1 + copies), self.batch_size * self.gradient_accumulation_steps * ranks
        steps, warmup = math.ceil(self.max_epochs * shown / at_once), self.warmup_steps
        if not self.max_epochs or steps >= self.max_steps:
            steps = self.max_steps
        else:
            steps, warmup = max(steps, 1), min(warmup, steps // 2)
        return dataclasses.replace(self, thinned_copies=copies, max_steps=steps, warmup_steps=warmup)


def copies_for(n_cells: int) -> int:
    """How many thinned copies of every cell suit a set of so many training cells."""
    return THINNED_COPIES if n_cells < FEW_CELLS else 0


def _typed(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint`, or `EvaeError`. YAML reads 1e-3 as text and a bare no as false; both are undone."""
    kind = typing.get_origin(hint) or hint
    if kind is types.UnionType:  # one or several
        one, several = typing.get_args(hint)
        return _typed(name, value, several if isinstance(value, (list, tuple)) else one)
    if kind is list and isinstance(value, (list, tuple)):
        return [_typed(name, item, typing.get_args(hint)[0]) for item in value]
    if value is False and kind is str:
        value = "no"
    if isinstance(value, str) and kind in (int, float):
        try:
            number = float(value)
            value = int(number) if kind is int and number.is_integer() else number
        except (ValueError, OverflowError):
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, os.PathLike) and kind is str:
        value = os.fspath(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = {bool: "true or false", int: "an integer", float: "a number", str: "text", list: "a list, as [3,1]"}
        raise EvaeError(f"{name} is {value!r}; give {expected.get(kind, 'key: value pairs')}.")
    return value


def model_fields(config_class: type) -> dict[str, Any]:
    """Field -> default of a configuration: the named arguments of `__init__`, its own bases' included."""
    fields: dict[str, Any] = {}
    for cls in config_class.__mro__:
        if cls.__module__.startswith("transformers."):
            break
        if "__init__" in vars(cls):
            named = inspect.signature(vars(cls)["__init__"]).parameters.values()
            fields |= {p.name: p.default for p in named if p.name != "self" and p.kind != p.VAR_KEYWORD} | fields
    return fields


def check_model_settings(model: Mapping[str, Any], config_class: type, given: Sequence[str] = ()) -> dict[str, Any]:
    """Check `settings.model` against the fields of a configuration class.

    Args:
        model: the values.
        config_class: the configuration; its fields are the named arguments of `__init__`.
        given: fields that training fills in itself (from the dataset), which may not be set.

    Returns:
        The values, numbers in text converted.

    Raises:
        EvaeError: an unknown field, one that the dataset decides, or a value of the wrong type.
    """
    parameters = model_fields(config_class)
    known = list(parameters)
    checked = {}
    for key, value in model.items():
        if key in given:
            raise EvaeError(f"model.{key} is taken from the dataset or the tokenizer; leave it out.")
        if key not in known:
            allowed = [k for k in known if k not in given]
            raise EvaeError(f"unknown setting 'model.{key}'. {near_matches(key, allowed)}")
        default = parameters[key]
        if value is not None and isinstance(default, (bool, int, float, str)):
            value = _typed(f"model.{key}", value, type(default))
        checked[key] = value
    return checked
