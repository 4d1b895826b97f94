"""`evae calibrate`: how far the predictions of a model may be trusted, from pairs that training did not see."""

from pathlib import Path
from typing import Annotated

import typer

from evae.cli.files import check_free, need_folder, write_table
from evae.cli.options import Device, Overwrite, Seed
from evae.cli.terminal import quiet_transformers, say
from evae.common.messages import number_of
from evae.common.progress import watched


def calibrate(
    model: Annotated[Path, typer.Argument(help="Folder of a trained prior; its processor is written anew.")],
    dataset: Annotated[str, typer.Option(help="Dataset folder that it was trained on, which holds pairs out.")],
    out: Annotated[Path | None, typer.Option(help="csv, tsv or parquet file of the pairs.")] = None,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(help="Cells drawn at once.", min=1)] = 256,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Learn how far predictions may be trusted, from the pairs that a dataset holds out.

    They are predicted and compared with their real cells. What was learned is kept in the model's folder;
    `evae predicted-effects` then says of every pair which error and which correlation to expect. The model itself
    stays as it was. At least 10 held-out pairs are needed.

    Example: evae calibrate runs/prior --dataset data/screen --out pairs.csv
    """
    need_folder(model)
    if out is not None:
        check_free(out, overwrite)
    from evae.common.files import explain_disk_errors
    from evae.inference.calibration import calibrate as learn
    from evae.inference.calibration import keep_calibration
    from evae.inference.pipeline import pipeline

    quiet_transformers()
    pipe = pipeline(model, device)
    table = learn(pipe, dataset, seed=seed, batch_size=batch_size, progress=watched())
    with explain_disk_errors(str(model)):
        kept = keep_calibration(pipe, model)
    if out is not None:
        write_table(table, out)
    for row in table.itertuples():
        say(
            f"{row.perturbation} in {row.cell_type}: error {row.error:.3f}, expected {row.expected_error:.3f}; "
            f"correlation {row.correlation:.2f}, expected {row.expected_correlation:.2f}"
        )
    learned = pipe.processor.calibration
    say(
        f"{number_of(learned['pairs'], 'held-out pair')}, each told by the others: the rank correlation of expected "
        f"with real error is {learned['error']['orders']:.2f}, of expected with real correlation "
        f"{learned['correlation']['orders']:.2f}"
    )
    say(f"kept in {kept}")
