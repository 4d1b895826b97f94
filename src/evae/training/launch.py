"""What the training scripts share: arguments in, one error line out."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from transformers.utils.logging import disable_progress_bar

from evae.models.contract_evae import EvaeError
from evae.training.settings import TRACKERS, load_settings


def main(kind: str, arguments: Sequence[str] | None = None) -> None:
    """Train the "tokenizer" or the "prior" as the arguments say; exits with code 2 after bad input.

    Args:
        kind: the stage.
        arguments: as on the command line; `sys.argv` if None.
    """
    parser = argparse.ArgumentParser(description=f"Train a {kind}.")
    parser.add_argument("--config", help="YAML file of settings, see scripts/configs")
    parser.add_argument("--report-to", choices=TRACKERS, help="experiment tracker")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, also model.key=value")
    given = parser.parse_intermixed_args(arguments)
    overrides = [*given.settings, *([f"report_to={given.report_to}"] if given.report_to else [])]
    disable_progress_bar()  # of transformers: loading and saving take no time here
    try:
        path = _train(kind, load_settings(kind, given.config, overrides))
    except EvaeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if os.environ.get("RANK", "0") == "0":
        print(path)


def _train(kind: str, settings: Any) -> Any:
    if kind == "tokenizer":
        from evae.training.tokenizer import train_tokenizer

        return train_tokenizer(settings)
    from evae.training.prior import train_prior

    return train_prior(settings)
