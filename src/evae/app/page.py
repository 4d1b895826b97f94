"""The page: what is asked stands on the left, what is seen on the right; on a phone one below the other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import gradio as gr

from evae.app.answer import LEAST_CELLS, MOST_CELLS, Answer, Question, ask
from evae.app.controls import LabelColumns
from evae.app.offered import Offered, choose
from evae.app.pictures import maps, picture_of_changes, picture_of_gene, pictures_of_cells
from evae.app.tools import add_tools
from evae.app.uploads import Bounds, take_upload
from evae.app.words import FIELDS, about, said, taken, top_genes, trouble
from evae.inference.example import STRONG, is_example
from evae.models.contract_evae import EvaeError

TITLE = "evae"
LEAD = "How do single cells respond to a perturbation? Choose one, and see predicted beside control cells."
WAITING = "<p class='quiet'>Nothing is predicted yet: choose a perturbation, then press <b>Predict</b>.</p>"
OWN, BUNDLED = "My own (.h5ad)", "Those of the model"
STATE_SECONDS = 3_600  # how long the cells of a page that nobody looks at are kept in memory
ONE_AT_A_TIME = "model"  # one prediction takes all cores
Progress = gr.Progress()


def build(offered: dict[str, Offered], bounds: Bounds, folder: Path) -> gr.Blocks:
    """The app, not yet served.

    Args:
        offered: the models to choose from, by name.
        bounds: what an upload may take.
        folder: where the server stores uploads and downloads.
    """
    with gr.Blocks(title="evae: predicted cells", analytics_enabled=False) as page:
        own, answer = (gr.State(None, time_to_live=STATE_SECONDS) for _ in range(2))
        gr.HTML(f"<h1>{TITLE}</h1><p>{LEAD}</p>", elem_id="lead")
        with gr.Row(elem_classes="side_by_side"):
            with gr.Column(scale=1, min_width=280):
                asked = _questions(offered)
                fields = _upload(bounds)
                button = gr.Button("Predict", variant="primary", elem_id="predict")
            with gr.Column(scale=3, min_width=280):
                seen = _answers()
        _join_questions(offered, bounds, folder, asked, fields, own)
        _join_answers(offered, folder, asked | {"source": fields["source"], "own": own}, seen, answer, button)
        add_tools(offered, folder, ONE_AT_A_TIME)
    return page


def _questions(offered: dict[str, Offered]) -> dict[str, Any]:
    first = next(iter(offered.values()))
    kinds = first.cell_types(first.controls)[0]
    asked = {
        "model": gr.Dropdown(list(offered), value=first.name, label="Model", visible=len(offered) > 1, elem_id="model"),
        "about": gr.HTML(about(first), elem_id="about"),
        "perturbation": gr.Dropdown(label="Perturbation", elem_id="perturbation", **_perturbations(first)),
        "cell_type": gr.Dropdown(kinds, value=kinds[0], label="Cell type", elem_id="cell_type"),
        "n_cells": gr.Slider(LEAST_CELLS, MOST_CELLS, 300, step=10, label="Cells to predict", elem_id="n_cells"),
    }
    with gr.Accordion("More", open=False, elem_id="more"):
        label = "Seed; the same gives the same cells"
        asked["seed"] = gr.Number(0, label=label, precision=0, minimum=0, elem_id="seed")
    return asked


def _perturbations(model: Offered) -> dict[str, Any]:
    more = model.more_perturbations()
    names = model.perturbations()
    first = STRONG if STRONG in names and is_example(model.name) else names[0]
    return {"choices": names, "value": first, "info": more or None, "allow_custom_value": bool(more)}


def _upload(bounds: Bounds) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "source": gr.Radio([BUNDLED, OWN], value=BUNDLED, label="Control cells", elem_id="source"),
    }
    with gr.Group(visible=False) as fields["group"]:
        fields["file"] = gr.File(
            label=f"Raw counts of control cells, .h5ad, at most {bounds.megabytes} MB",
            file_types=[".h5ad"], height=120, elem_id="file",
        )  # fmt: skip
        with gr.Accordion("Names in the file", open=False):
            for name, label in FIELDS.items():
                fields[name] = gr.Textbox(label=label, placeholder="found by usual names", max_length=200, elem_id=name)
    fields["said"] = gr.HTML("", elem_id="upload_said")
    return fields


def _answers() -> dict[str, Any]:
    seen: dict[str, Any] = {"said": gr.HTML(WAITING, elem_id="said")}
    with gr.Column(visible=False, elem_id="results") as seen["results"]:
        with gr.Row():
            seen["h5ad"] = gr.DownloadButton("Download cells (.h5ad)", size="sm", elem_id="h5ad")
            seen["csv"] = gr.DownloadButton("Download all genes (.csv)", size="sm", elem_id="csv")
        with gr.Row(elem_classes="side_by_side"):
            with gr.Column(min_width=280):
                seen["cells"] = gr.HTML("", elem_id="cells", elem_classes="picture")
                seen["map"] = gr.Radio(maps(), value=maps()[0], label="Map of cells", elem_id="map")
            with gr.Column(min_width=280):
                seen["volcano"] = gr.HTML("", elem_id="volcano", elem_classes="picture")
        with gr.Row(elem_classes="side_by_side"):
            with gr.Column(min_width=280):
                seen["table"] = gr.HTML("", elem_id="genes", apply_default_css=False)
            with gr.Column(min_width=280):
                seen["violin"] = gr.HTML("", elem_id="violin", elem_classes="picture")
                seen["gene"] = gr.Dropdown([], label="Gene", elem_id="gene")
    return seen


def _join_questions(
    offered: dict[str, Offered],
    bounds: Bounds,
    folder: Path,
    asked: dict[str, Any],
    fields: dict[str, Any],
    own: gr.State,
) -> None:
    def cell_types(model: str, source: str, cells: ad.AnnData | None) -> Any:
        chosen = choose(offered, model)
        kinds = chosen.cell_types(cells if source == OWN else chosen.controls)[0]
        return gr.Dropdown(kinds, value=kinds[0])

    def new_model(model: str, source: str, cells: ad.AnnData | None) -> tuple[Any, Any, str]:
        chosen = choose(offered, model)
        return gr.Dropdown(**_perturbations(chosen)), cell_types(model, source, cells), about(chosen)

    def read(
        file: str | None,
        model: str,
        pert: str | None,
        kind: str | None,
        control: str | None,
        progress: gr.Progress = Progress,
    ) -> tuple[Any, str, None]:
        if file is None:
            return gr.skip(), gr.skip(), None
        progress(0.3, desc="Reading the file")
        usual = str(choose(offered, model).pipe.processor.control)
        pert, kind, control = ((text or "").strip() or None for text in (pert, kind, control))
        columns = LabelColumns(pert, kind, control, usual)
        try:
            cells, notes = take_upload(Path(file), folder, columns, bounds)
        except EvaeError as error:
            return None, trouble(error), None
        return cells, taken(Path(file).name, cells.n_obs, notes), None

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    pick = [asked["model"], fields["source"], own]
    asked["model"].change(new_model, pick, [asked[n] for n in ("perturbation", "cell_type", "about")], **quiet)
    fields["source"].change(lambda source: gr.Group(visible=source == OWN), fields["source"], fields["group"], **quiet)
    fields["source"].change(cell_types, pick, asked["cell_type"], **quiet)
    names = [fields[name] for name in FIELDS]
    fields["file"].upload(
        read, [fields["file"], asked["model"], *names], [own, fields["said"], fields["file"]],
        api_visibility="private", show_progress_on=[fields["said"]], concurrency_limit=2,
    ).then(cell_types, pick, asked["cell_type"], **quiet)  # fmt: skip


def _join_answers(
    offered: dict[str, Offered],
    folder: Path,
    asked: dict[str, Any],
    seen: dict[str, Any],
    answer: gr.State,
    button: gr.Button,
) -> None:
    outputs = [
        *(answer, seen["results"], seen["said"], seen["volcano"], seen["table"], seen["gene"]),
        *(seen["h5ad"], seen["csv"]),
    ]
    inputs = [asked[n] for n in ("model", "perturbation", "cell_type", "n_cells", "seed", "source", "own")]

    def predict(
        model: str, name: str | None, kind: str | None, n_cells: float, seed: float, source: str,
        cells: ad.AnnData | None, progress: gr.Progress = Progress,
    ) -> list[Any]:  # fmt: skip
        def tell(share: float, what: str) -> None:
            progress(share, desc=what)

        try:
            if not name:
                raise EvaeError("no perturbation is chosen; choose one.")
            if source == OWN and cells is None:
                raise EvaeError(f"no control cells are uploaded; upload some, or choose '{BUNDLED}'.")
            question = Question(name, kind, int(n_cells), int(seed or 0))
            found = ask(choose(offered, model), cells if source == OWN else None, question, tell)
        except EvaeError as error:
            return [None, gr.Column(visible=False), trouble(error), "", None, None, None, None]
        tell(0.8, "Drawing")
        files = [str(path) for path in found.save(folder)]
        genes = [str(gene) for gene in found.table["gene"]]
        picked = gr.Dropdown(genes, value=genes[0])
        return [
            found,
            gr.Column(visible=True),
            said(found),
            picture_of_changes(found),
            top_genes(found),
            picked,
            *files,
        ]

    def draw_cells(found: Answer | None, name: str) -> Iterator[str]:
        yield from [""] if found is None else pictures_of_cells(found, name)

    def draw_gene(found: Answer | None, name: str | None) -> str:
        try:
            return "" if found is None or not name else picture_of_gene(found, name)
        except EvaeError as error:
            return trouble(error)

    limits: dict[str, Any] = {"concurrency_id": ONE_AT_A_TIME, "concurrency_limit": 1, "api_visibility": "private"}
    by_map = limits | {"concurrency_id": "map"}  # UMAP is not safe beside itself, and nothing else should wait for it
    done = button.click(predict, inputs, outputs, show_progress_on=[seen["said"]], scroll_to_output=True, **limits)
    done.then(draw_gene, [answer, seen["gene"]], seen["violin"], **limits)
    done.then(draw_cells, [answer, seen["map"]], seen["cells"], show_progress="minimal", **by_map)
    seen["gene"].input(draw_gene, [answer, seen["gene"]], seen["violin"], **limits)
    seen["map"].input(draw_cells, [answer, seen["map"]], seen["cells"], **by_map)
