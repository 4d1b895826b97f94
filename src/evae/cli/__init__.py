"""The `evae` command, one file a command. Bad input gives one line on stderr and exit code 2, never a traceback.

A command imports what it works with when it has looked at its options, so that help and refusals come at once.
"""

import sys
import tempfile
import warnings
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import evae
from evae.cli.browser_app import browser_app
from evae.cli.calibrate import calibrate
from evae.cli.convert import convert
from evae.cli.effects import effects
from evae.cli.embed import embed
from evae.cli.evaluate import evaluate
from evae.cli.finetune import finetune
from evae.cli.options import in_options
from evae.cli.predict import predict
from evae.cli.predicted_effects import predicted_effects
from evae.cli.prepare import prepare
from evae.cli.push import push
from evae.cli.push_dataset import push_dataset
from evae.cli.rank import rank
from evae.cli.reversion import reversion
from evae.cli.simulate import simulate
from evae.cli.study import study
from evae.cli.terminal import plain_warnings
from evae.cli.train import train
from evae.cli.vcc import vcc
from evae.common.files import disk_error
from evae.common.logs import talkative
from evae.common.threads import leave_cores_while_waiting
from evae.models.contract_evae import EvaeError


class InOrder(TyperGroup):
    """Shows the commands in the order of use; their errors name options where the code names arguments."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return [
            "prepare",
            "train",
            "finetune",
            "effects",
            "predict",
            "calibrate",
            "predicted-effects",
            "rank",
            "embed",
            "evaluate",
            "reversion",
            "study",
            "vcc",
            "app",
            "push",
            "push-dataset",
            "convert",
            "simulate",
        ]

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the command; what it says names its options."""

        def words(text: str) -> str:
            return in_options(text, self.commands[str(ctx.invoked_subcommand)])

        try:
            with talkative(words), plain_warnings(words):
                return super().invoke(ctx)
        except EvaeError as error:
            raise EvaeError(words(str(error))) from error


app = typer.Typer(
    cls=InOrder,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"evae {evae.__version__}")
        raise typer.Exit


@app.callback()
def start(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Predict how cells respond to perturbations, from raw counts to raw counts.

    The usual way: **prepare** a dataset folder, **train** the tokenizer and then the prior, **predict**
    cells, **evaluate** them. **simulate** makes cells to try it on.
    """


app.command()(prepare)
app.add_typer(train, name="train")
app.command()(finetune)
app.command()(effects)
app.command()(predict)
app.command()(calibrate)
app.command("predicted-effects")(predicted_effects)
app.command()(rank)
app.command()(embed)
app.command()(evaluate)
app.command()(reversion)
app.command()(study)
app.add_typer(vcc, name="vcc")
app.command("app")(browser_app)
app.command()(push)
app.command("push-dataset")(push_dataset)
app.command()(convert)
app.command()(simulate)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; `sys.argv` if no arguments are given."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="anndata")
    for said in (".* of the model's gene panel", "effect_transfer=.* moves no cells"):  # by the commands themselves
        warnings.filterwarnings("ignore", message=said)
    leave_cores_while_waiting()
    try:
        app(args=arguments, prog_name="evae")
    except EvaeError as error:
        _fail(str(error))
    except OSError as error:  # a missing folder, no permission, a full disk
        where = f": {error.filename}" if error.filename else ""
        mend = ""
        if disk_error(error) and not where:  # temporary files have no name
            mend = f"; free space, also for temporary files in {tempfile.gettempdir()} (TMPDIR names another folder)"
        _fail(f"{error.strerror or error}{where}{mend}")


def _fail(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(2)
