"""Pictures of an answer, as HTML that holds them: nothing is stored, and each says in words what it shows."""

import base64
import io
import sys
import threading
from collections.abc import Callable, Iterator
from html import escape
from importlib.util import find_spec

import numpy as np
from matplotlib.axes import Axes

from evae.app.answer import Answer
from evae.common.figures import look, new_figure
from evae.evaluation.cells.projection import neighbour_map
from evae.plot import cells, gene, volcano

MAPS = {"UMAP": "umap", "Principal components": "pca"}
SIZE = (4.0, 3.6)  # inches; so large that text is readable in half a page
DPI = 200
PENDING = "<b>UMAP is being prepared</b>; until then principal components."
_DRAWING = threading.Lock()


def maps() -> list[str]:
    """The maps of cells that can be drawn here, the usual one first."""
    return [name for name, embedding in MAPS.items() if embedding == "pca" or find_spec("umap")]


def pictures_of_cells(answer: Answer, name: str) -> Iterator[str]:
    """The map that is asked for; the first time for UMAP, principal components while it compiles itself.

    That is done before the picture is drawn, so that other pictures need not wait for it.
    """
    if MAPS.get(name) == "umap" and "umap" not in sys.modules:
        yield picture_of_cells(answer, "Principal components", f"{PENDING} ")
        neighbour_map(np.random.default_rng(0).normal(size=(30, 5)))
    yield picture_of_cells(answer, name)


def picture_of_cells(answer: Answer, name: str, before: str = "") -> str:
    """Predicted beside control cells on a map, one of `maps()`; `before` is HTML to put before its words."""
    embedding = MAPS.get(name, "pca")
    meaning = "near cells are alike" if embedding == "umap" else "the directions in which the cells vary most"
    words = f"Each point is a cell: control cells purple, predicted cells orange; {meaning}."
    return _picture(lambda ax: cells(answer.groups(), ax, embedding=embedding), f"{name} of cells", words, before)


def picture_of_changes(answer: Answer) -> str:
    """Fold changes and p-values of all genes."""
    words = "Each point is a gene: to the right it rises, to the left it falls; the higher, the surer."
    return _picture(lambda ax: volcano(answer.table, ax), "Volcano plot of genes", words)


def picture_of_gene(answer: Answer, name: str) -> str:
    """How much of a gene the cells hold."""
    words = f"How much {name} single cells hold, before and after; the line is the mean."
    return _picture(lambda ax: gene(answer.groups(), name, ax), f"Violins of {name}", words)


def _picture(draw: Callable[[Axes], Axes], title: str, words: str, before: str = "") -> str:
    figure, content = new_figure(*SIZE), io.BytesIO()
    with _DRAWING, look():  # whose settings are those of the whole process
        draw(figure.add_subplot())
        figure.savefig(content, format="png", dpi=DPI)
    image = base64.b64encode(content.getvalue()).decode()
    alt, caption = escape(f"{title}. {words}"), before + escape(words)
    return f"<figure><img src='data:image/png;base64,{image}' alt='{alt}'><figcaption>{caption}</figcaption></figure>"
