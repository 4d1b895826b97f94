"""The checkpoints that an app offers, loaded, each with the control cells that come with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata as ad

from evae.app.controls import LabelColumns, controls_of
from evae.common.logs import logger
from evae.data.reading.labels import label_codes
from evae.inference.example import example_controls, is_example
from evae.inference.pipeline import Pipeline, pipeline
from evae.inference.sampling import knows_by_context, reads_controls
from evae.models.contract_evae import EvaeError, near_matches

LOG = logger(__name__)


@dataclass(frozen=True)
class Offered:
    """A checkpoint that may be chosen.

    Attributes:
        name: what it is called in the app; never a path.
        pipe: the checkpoint at work.
        controls: control cells to predict from, raw counts, with obs `cell_type` where known; None if there are none.
    """

    name: str
    pipe: Pipeline
    controls: ad.AnnData | None

    def perturbations(self) -> list[str]:
        """What it can predict, without the control."""
        return [str(p) for p in self.pipe.processor.perturbations if p != self.pipe.processor.control]

    def more_perturbations(self) -> str:
        """How to name what it can predict besides, for a model that learned doses or times; "" for others."""
        return f"Other doses can be typed, as in {self.perturbations()[0]}." if self.pipe.processor.treatments else ""

    def cell_types(self, controls: ad.AnnData | None) -> tuple[list[str], str | None]:
        """The cell types that may be chosen for control cells, and the obs column that tells them.

        The column is None where the cells do not say what they are, or say what the model does not know; then all of
        them stand for the cell type that is chosen.
        """
        known = [str(kind) for kind in self.pipe.processor.cell_types]
        if controls is None or "cell_type" not in controls.obs:
            return known, None
        own = label_codes(controls.obs["cell_type"])[1]
        if not (reads_controls(self.pipe.checkpoint) or knows_by_context(self.pipe.checkpoint)):
            own = [kind for kind in own if kind in known]
        return (own, "cell_type") if own else (known, None)


def load_offered(
    places: Sequence[str], controls: Path | None, device: str | None, most_controls: int
) -> dict[str, Offered]:
    """Load checkpoints for an app.

    Args:
        places: folders, Hub ids or "example"; each is named by the last part of its path, or wholly where two share it.
        controls: file of control cells for all but the example, which has its own.
        device: where to compute; a GPU if there is one, if None.
        most_controls: cells of the file that are taken.

    Returns:
        by name, in the order given.

    Raises:
        EvaeError: a checkpoint that does not load, or that is a tokenizer; a file that cannot be read.
    """
    short = [place if is_example(place) or not Path(place).is_dir() else Path(place).resolve().name for place in places]
    found: dict[str, Offered] = {}
    for number, (place, name) in enumerate(zip(places, short, strict=True)):
        name = name if short.count(name) == 1 else f"{name} ({number + 1})"
        pipe = pipeline(place, device)
        if not pipe.checkpoint.is_prior:
            raise EvaeError(f"{place} is a tokenizer, which does not predict; give a prior.")
        own = example_controls() if is_example(place) else None
        if own is None and controls is not None:
            own, notes = controls_of(controls, LabelColumns(usual=str(pipe.processor.control)), most_controls)
            for note in notes:
                LOG.info(note)
        found[name] = Offered(name, pipe, own)
    return found


def choose(offered: dict[str, Offered], name: str | None) -> Offered:
    """The checkpoint of that name; the first if none is named."""
    if not name:
        return next(iter(offered.values()))
    if name not in offered:
        raise EvaeError(f"there is no model '{name}'. {near_matches(name, list(offered))}")
    return offered[name]
