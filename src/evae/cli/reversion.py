"""`evae reversion`: which knock-downs bring stressed cells back to rest."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evae.cli.files import check_folder, fresh_folder, need_cells, need_file
from evae.cli.options import EMBEDDINGS, Device, Layer, Overwrite, Seed, check_known, check_model, names_of
from evae.cli.terminal import console, quiet_transformers, say
from evae.common.progress import watched
from evae.models.contract_evae import EvaeError, split_names

if TYPE_CHECKING:
    from evae.reversion import ScreenNames

PRESETS = ("telohaec",)
BASELINES = ("pca", "umap", "de")
RESULT = "result.json"


def reversion(
    file: Annotated[Path, typer.Argument(help="h5ad file of raw counts.", metavar="SCREEN.h5ad")],
    model: Annotated[
        str | None, typer.Option(help="Encoder: folder of a trained tokenizer or prior, or a Hub id.")
    ] = None,
    kind: Annotated[
        str, typer.Option(help="Of its embeddings: latents, pooled, codes; several with commas, or all.")
    ] = "latents",
    embedding: Annotated[
        list[str] | None,
        typer.Option(help="Precomputed, as NAME=FILE, NAME=FILE.h5ad:KEY or NAME=KEY of the screen's obsm; repeat it."),
    ] = None,
    baselines: Annotated[str, typer.Option(help="pca, umap, de; several with commas, or none.")] = "pca,de",
    reference: Annotated[
        Path | None, typer.Option(help="Ranking to compare with: one target a line, best first.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help=f"Names of a known screen: {', '.join(PRESETS)}.")] = None,
    condition_key: Annotated[str | None, typer.Option(help="obs column of the arm.")] = None,
    target_key: Annotated[str | None, typer.Option(help="obs column of the knock-down.")] = None,
    treated: Annotated[str | None, typer.Option(help="Label of the stressed arm.")] = None,
    untreated: Annotated[str | None, typer.Option(help="Label of the resting arm.")] = None,
    anchor: Annotated[str | None, typer.Option(help="Control target whose untreated cells are the goal.")] = None,
    control: Annotated[
        list[str] | None, typer.Option(help="Control target, not ranked; repeat it, or separate several by commas.")
    ] = None,
    positive: Annotated[
        list[str] | None, typer.Option(help="Target known to revert the stress; repeat it, or separate by commas.")
    ] = None,
    layer: Layer = None,
    min_cells: Annotated[int, typer.Option(help="Groups of fewer cells are not ranked.", min=1)] = 1,
    permutations: Annotated[int, typer.Option(help="For the p-values.", min=1)] = 10_000,
    shuffles: Annotated[
        int, typer.Option(help="Of labels, for null screens and Calinski-Harabasz ratios.", min=0)
    ] = 30,
    components: Annotated[int, typer.Option(help="Of PCA.", min=1)] = 50,
    seed: Seed = 0,
    device: Device = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report; FILE_reversion if left out.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Rank knock-downs by how far they bring stressed cells back to rest.

    Compares the frozen encoder with baselines and precomputed embeddings (scGPT's, say) on one screen: treated
    and untreated cells with many targets. Prints the main numbers and writes a report (HTML, PNG, JSON, CSV).

    Example: evae reversion screen.h5ad --model runs/tokenizer --preset telohaec --embedding scgpt=scgpt.h5ad
    """
    out = out or file.with_name(f"{file.stem}_reversion")
    check_folder(out, RESULT, overwrite)
    kinds, compared = (
        EMBEDDINGS if kind == "all" else names_of(kind),
        () if baselines == "none" else names_of(baselines),
    )
    check_known(kinds, EMBEDDINGS, "kind of embedding")
    check_known(compared, BASELINES, "baseline")
    check_known([preset] if preset else [], PRESETS, "preset")
    found = _embeddings(embedding or [])
    need_cells(file)
    if model is not None:
        check_model(model)
    if reference is not None:
        need_file(reference)
    from evae.reversion import run

    quiet_transformers()
    labels = {"condition_key": condition_key, "target_key": target_key, "treated": treated, "untreated": untreated}
    given = {k: v for k, v in {**labels, "anchor": anchor}.items() if v is not None}
    targets = _targets(file, preset, target_key, layer, {"controls": control, "positives": positive})
    result = run(
        file,
        _names(preset, given | targets),
        model=model,
        kinds=kinds,
        embeddings=found,
        baselines=compared,
        reference=reference,
        layer=layer,
        min_cells=min_cells,
        n_permutations=permutations,
        n_shuffles=shuffles,
        n_components=components,
        seed=seed,
        device=device,
        progress=watched(),
    )
    console().print(result.rich())
    with fresh_folder(out, RESULT, overwrite) as folder:
        result.report(folder)
    say(f"all numbers: {out / 'report.html'}", style="bold")


def _targets(
    file: Path, preset: str | None, key: str | None, layer: str | None, options: dict[str, list[str] | None]
) -> dict[str, tuple[str, ...]]:
    """The targets that options name. A target may hold commas itself, so those of the screen are found first."""
    from evae.data.preparing.automatic import read_labels
    from evae.reversion import PRESETS, ScreenNames

    given = {name: texts for name, texts in options.items() if texts}
    known: set[str] = set()
    if any("," in text for texts in given.values() for text in texts):
        known = set(read_labels([file], key or (PRESETS[preset] if preset else ScreenNames).target_key, layer))
    return {
        name: tuple(dict.fromkeys(n for text in texts for n in split_names(text, known)))
        for name, texts in given.items()
    }


def _names(preset: str | None, given: dict[str, Any]) -> "ScreenNames":
    from evae.reversion import PRESETS, ScreenNames

    if "anchor" in given and "controls" not in given and preset is None:
        given["controls"] = (given["anchor"],)
    return ScreenNames(**{**(asdict(PRESETS[preset]) if preset else {}), **given})


def _embeddings(given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, equals, where = text.partition("=")
        if not (name and equals and where):
            raise EvaeError(f"'{text}' names no embedding; write NAME=FILE, or NAME=KEY for an obsm key of the screen.")
        if name in found:
            raise EvaeError(f"two embeddings are called '{name}'; name them apart.")
        found[name] = where
    return found
