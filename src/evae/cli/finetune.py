"""`evae finetune`: a trained prior goes on with new cells."""

import os
from pathlib import Path
from typing import Annotated

import typer

from evae.cli.options import check_model
from evae.cli.terminal import quiet_transformers
from evae.models.contract_evae import EvaeError


def finetune(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a trained prior, or a Hub id.", metavar="CHECKPOINT")],
    dataset: Annotated[str, typer.Option(help="Dataset folder or Hub id, prepared over the genes of CHECKPOINT.")],
    out: Annotated[Path, typer.Option(help="Folder of the run, which is the fine-tuned model in the end.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value...", help="Settings of training, such as max_steps=500 or resume=true."),
    ] = None,
    lora: Annotated[
        bool, typer.Option("--lora", help="Train an adapter of a few MB (needs the extra finetune), not all weights.")
    ] = False,
    lora_rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")] = 16,
    tokenizer: Annotated[
        bool, typer.Option("--tokenizer", help="Train the tokenizer too, first, in the folder OUT_tokenizer.")
    ] = False,
    replay: Annotated[
        str | None, typer.Option(help="Dataset that the checkpoint was trained on, shown again against forgetting.")
    ] = None,
    replay_share: Annotated[float, typer.Option(help="Share of replayed cells in a batch.")] = 0.5,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
) -> None:
    """Train a prior on with new cells, whose perturbations, cell types and batches may be new to it.

    Its names keep their places, new ones follow. Steps and learning rate go by the number of new cells. In the end it
    says how far the predictions of old perturbations moved.

    Example: evae prepare new.h5ad --genes runs/prior --out data/new && evae finetune runs/prior --dataset data/new
    --out runs/fine
    """
    check_model(checkpoint)
    from evae.finetuning import finetune as fine_tune
    from evae.finetuning.settings import known_settings
    from evae.training.settings import check_names, read_overrides

    given = read_overrides(settings or [])
    check_names(given, known_settings(), "a fine-tuning, whose model is that of the checkpoint")
    if lora_rank != 16 and not lora:
        raise EvaeError("lora_rank is of an adapter; add --lora.")
    quiet_transformers()
    path = fine_tune(
        checkpoint, dataset, out, lora=lora_rank if lora else False, tokenizer=tokenizer, replay=replay,
        replay_share=replay_share, revision=revision, **given,
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        print(path)
