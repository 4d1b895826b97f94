"""`evae train tokenizer` and `evae train prior`; on several processes `accelerate launch -m evae.cli train ...`."""

import os
from pathlib import Path
from typing import Annotated, Any, cast

import typer
import yaml
from rich.table import Column, Table
from typer.core import TyperCommand

from evae.cli.terminal import console, quiet_transformers
from evae.training.settings import (
    KINDS,
    PriorSettings,
    Settings,
    TokenizerSettings,
    config_path,
    described,
    load_settings,
)

train = typer.Typer(no_args_is_help=True, help="Train a tokenizer, then a prior over its codes.")

Config = Annotated[str, typer.Option(help="Preset (tiny, small, base, paper) or a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="key=value...", help="Settings; model.key=value for the model's."),
]
Dataset = Annotated[str | None, typer.Option(help="Dataset folder or Hub id; the same as dataset=...")]
ReportTo = Annotated[str | None, typer.Option(help="Tracker: none, tensorboard, wandb or trackio.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and show all settings, the model's too; do not train.")]


class WithSettings(TyperCommand):
    """A command whose help lists the settings, with their values in the preset `base`."""

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        super().format_help(ctx, formatter)
        stage = str(self.name)
        values = load_settings(stage, config_path("base", stage)).to_dict()
        name = Column("setting", no_wrap=True)
        table = Table(name, "base", "what it is", title="Settings", title_justify="left", expand=True)
        for key, text in described(KINDS[stage]).items():
            table.add_row(key, "see --dry-run" if key == "model" else str(values[key]), text)
        console().print(table, markup=False)


@train.command("tokenizer", cls=WithSettings)
def tokenizer(
    settings: Overrides = None,
    config: Config = "base",
    dataset: Dataset = None,
    report_to: ReportTo = None,
    dry_run: DryRun = False,
) -> None:
    """Train the tokenizer that turns a cell's counts into codes and back.

    Needs dataset=DIR and output_dir=DIR. A run that was stopped goes on with resume=true. Several datasets over one
    gene panel are given as 'dataset=[DIR,DIR]', with 'dataset_weights=[3,1]' for how many cells of each a batch holds.

    Example: evae train tokenizer --config tiny dataset=data/screen output_dir=runs/tokenizer max_steps=500
    """
    chosen = _settings("tokenizer", config, settings, dataset=dataset, report_to=report_to)
    if dry_run:
        _show(chosen)
        return
    from evae.training.tokenizer import train_tokenizer

    quiet_transformers()
    _tell(train_tokenizer(cast(TokenizerSettings, chosen)))


@train.command("prior", cls=WithSettings)
def prior(
    settings: Overrides = None,
    config: Config = "base",
    dataset: Dataset = None,
    report_to: ReportTo = None,
    dry_run: DryRun = False,
) -> None:
    """Train the prior that writes codes for a perturbation and a cell type.

    Needs dataset=DIR (or several, as for the tokenizer), tokenizer=DIR and output_dir=DIR. The finished folder is all
    that predicting needs. model_type is evae_ar, evae_mdlm or evae_flow; tokenizer=counts models the counts without
    latents. With perturbation_features=FILE (vectors by name) and model.cell_type_context=true it may be asked for
    perturbations and cell types that training never saw.

    Example: evae train prior --config tiny dataset=data/screen tokenizer=runs/tokenizer output_dir=runs/prior
    """
    chosen = _settings("prior", config, settings, dataset=dataset, report_to=report_to)
    if dry_run:
        _show(chosen)
        return
    from evae.training.prior import train_prior

    quiet_transformers()
    _tell(train_prior(cast(PriorSettings, chosen)))


def _show(settings: Settings) -> None:
    from evae.training.dry_run import dry_run

    quiet_transformers()
    print(yaml.safe_dump(dry_run(settings), sort_keys=False).strip())


def _tell(path: Path) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        print(path)


def _settings(stage: str, config: str, settings: list[str] | None, **options: str | None) -> Settings:
    """The preset or file, with what the command line says."""
    given = [*(settings or []), *(f"{name}={value}" for name, value in options.items() if value)]
    chosen = load_settings(stage, config_path(config, stage), given)
    chosen.require("dataset", "output_dir")
    return chosen
