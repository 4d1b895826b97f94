"""The app's questions as tools for agents (Model Context Protocol) and for programs (its HTTP interface).

Tools take names and numbers, never paths, and work on the control cells that come with a model. They answer with JSON
as text: Gradio 6 would hand other values to agents as Python writes them. Their docstrings are what agents read; they
name what comes out in sentences, since Gradio puts a comma behind every line of "Returns".
"""

import json
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import api

from evae.app.answer import Answer, Question, ask
from evae.app.offered import Offered, choose
from evae.app.words import CAUTION
from evae.common.numbers import plain
from evae.models.contract_evae import EvaeError

MOST_GENES = 200


def add_tools(offered: dict[str, Offered], folder: Path, one_at_a_time: str) -> None:
    """Add the tools to the page that is being built.

    Args:
        offered: the models, by name.
        folder: where downloads are stored.
        one_at_a_time: the concurrency group of what works with a model.
    """

    def answered(perturbation: str, cell_type: str, model: str, n_cells: int, seed: int) -> Answer:
        try:  # an agent may send anything, whatever the types say
            question = Question(str(perturbation), str(cell_type or "") or None, _whole(n_cells), _whole(seed))
            return ask(choose(offered, str(model or "")), None, question, lambda share, what: None)
        except EvaeError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def list_models() -> str:
        """List the models: what each can predict, also at other doses and times, and whether it has control cells."""
        return json.dumps(plain([_described(model) for model in offered.values()]))

    def predict_genes(
        perturbation: str, cell_type: str = "", model: str = "", n_cells: int = 300, n_genes: int = 20, seed: int = 0
    ) -> str:
        """Predict which genes change in single cells after a perturbation, compared with control cells.

        Gives, as JSON, the numbers of cells, what training saw of the pair, the correlation and the error of the
        predicted change that held-out pairs let expect, how many genes change (FDR below 5%), and for each of the
        surest genes the log2 fold change, its spread over further predictions, the FDR, and shares of cells with it.

        Args:
            perturbation: name of the perturbation, such as a gene that is knocked out; see list_models.
            cell_type: name of the cell type; the first of the model if empty.
            model: name of the model; the first if empty.
            n_cells: cells to predict, 10 to 2,000.
            n_genes: genes to return, the surest first, at most 200.
            seed: the same seed gives the same cells.
        """
        shown = int(n_genes) if str(n_genes).isdecimal() else MOST_GENES
        found = answered(perturbation, cell_type, model, n_cells, seed)
        return json.dumps(plain(_summed_up(found, min(shown, MOST_GENES))))

    def predict_cells(
        perturbation: str, cell_type: str = "", model: str = "", n_cells: int = 300, seed: int = 0
    ) -> str:
        """Predict single cells after a perturbation, as a file of raw counts (h5ad).

        Args:
            perturbation: name of the perturbation; see list_models.
            cell_type: name of the cell type; the first of the model if empty.
            model: name of the model; the first if empty.
            n_cells: cells to predict, 10 to 2,000.
            seed: the same seed gives the same cells.
        """
        found = answered(perturbation, cell_type, model, n_cells, seed)
        return str(found.save(folder)[0])

    limits: dict[str, Any] = {"concurrency_id": one_at_a_time, "concurrency_limit": 1}
    api(list_models)
    api(predict_genes, **limits)
    with gr.Column(visible=False):  # a tool that gives a file needs components
        given: list[Any] = [
            gr.Textbox(label="perturbation"),
            *(gr.Textbox("", label=name) for name in ("cell_type", "model")),
        ]
        given += [gr.Number(300, label="n_cells", precision=0), gr.Number(0, label="seed", precision=0)]
        gr.Button().click(predict_cells, given, gr.File(label="cells"), api_name="predict_cells", **limits)


def _described(model: Offered) -> dict[str, Any]:
    return {
        "model": model.name,
        "perturbations": model.perturbations(),
        "other_perturbations": model.more_perturbations(),
        "cell_types": model.cell_types(model.controls)[0],
        "n_genes": len(model.pipe.processor.genes),
        "has_controls": model.controls is not None,
    }


def _summed_up(found: Answer, n_genes: int) -> dict[str, Any]:
    changed = found.changed()
    rows = found.table.head(n_genes)
    columns = ["gene", "log2_fold_change", "spread", "fdr", "share", "share_control"]
    return {
        "perturbation": found.perturbation,
        "cell_type": found.cell_type,
        "predicted_cells": int(found.predicted.n_obs),
        "control_cells": int(found.controls.n_obs),
        "support": str(found.predicted.obs["support"].iloc[0]),
        "expected_correlation": found.table["expected_correlation"].iloc[0],
        "expected_error": found.table["expected_error"].iloc[0],
        "remark": found.table["remark"].iloc[0],
        "genes_that_rise": int((changed["log2_fold_change"] > 0).sum()),
        "genes_that_fall": int((changed["log2_fold_change"] <= 0).sum()),
        "genes": rows[columns],
        "caution": CAUTION,
    }


def _whole(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise EvaeError(f"{value!r} is no whole number; give one.") from None
