"""A question to a model and its answer: predicted cells, the controls beside them, and which genes change."""

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import pandas as pd

from evae.app.offered import Offered
from evae.common.messages import number_of
from evae.data.reading.labels import label_texts
from evae.models.contract_evae import EvaeError, near_matches

FDR = 0.05
REDRAWS = 3  # further predictions that tell how sure the model is
LEAST_CELLS, MOST_CELLS = 10, 2_000
Tell = Callable[[float, str], None]  # how far the work is, 0 to 1, and what is done now


@dataclass(frozen=True)
class Question:
    """What is asked of a model."""

    perturbation: str
    cell_type: str | None = None
    n_cells: int = 300
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """What a model predicts.

    Attributes:
        perturbation, cell_type: the question.
        predicted: cells as `Pipeline.predict` returns them.
        controls: the control cells of that cell type.
        table: as `Pipeline.effects` returns it.
    """

    perturbation: str
    cell_type: str
    predicted: ad.AnnData
    controls: ad.AnnData
    table: pd.DataFrame

    def groups(self) -> dict[str, ad.AnnData]:
        """The cells as `evae.plot` takes them."""
        return {"control": self.controls, "predicted": self.predicted}

    def changed(self) -> pd.DataFrame:
        """The genes that change."""
        return self.table[self.table["fdr"] < FDR]

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write the predicted cells as h5ad and the table as csv into a new folder in `folder`; returns both paths."""
        folder = Path(tempfile.mkdtemp(dir=folder))
        name = re.sub(r"[^\w.+-]+", "_", f"{self.perturbation}_{self.cell_type}").strip("._")[:80] or "predicted"
        cells, genes = folder / f"{name}.h5ad", folder / f"{name}_genes.csv"
        self.predicted.write_h5ad(cells, compression="gzip")
        self.table.to_csv(genes, index=False)
        return cells, genes


def ask(model: Offered, controls: ad.AnnData | None, question: Question, tell: Tell) -> Answer:
    """Predict cells, and say which genes change.

    Args:
        model: one of those that the app offers.
        controls: the user's control cells; those that come with the model if None.
        question: what is asked.
        tell: is told how far the work is.

    Raises:
        EvaeError: no controls, a number of cells that is too small or too large, or a name that the model does not
            know.
    """
    cells = model.controls if controls is None else controls
    if cells is None:
        raise EvaeError(f"no control cells come with the model '{model.name}'; upload some.")
    if not LEAST_CELLS <= question.n_cells <= MOST_CELLS:
        raise EvaeError(
            f"{number_of(question.n_cells, 'cell was', 'cells were')} asked for; give {LEAST_CELLS} to {MOST_CELLS:,}."
        )
    kinds, key = model.cell_types(cells)
    kind = question.cell_type or kinds[0]
    if kind not in kinds:
        raise EvaeError(f"there is no cell type '{kind}' to choose. {near_matches(kind, kinds)}")
    if question.perturbation == model.pipe.processor.control:
        raise EvaeError(f"'{question.perturbation}' is the control; choose a perturbation.")
    tell(0.1, "Predicting cells")
    predicted = model.pipe.predict(
        cells, question.perturbation, kind, question.n_cells, seed=question.seed, cell_type_key=key, progress=False
    )
    tell(0.3, "Predicting again, to see how sure the model is")
    table = model.pipe.effects(predicted, cells, redraws=REDRAWS, cell_type_key=key)
    own = cells if key is None else cells[label_texts(cells.obs[key]) == kind].copy()
    return Answer(question.perturbation, kind, predicted, own, table)
