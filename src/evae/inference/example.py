"""The trained model that the package carries, and control cells for it: for a first prediction without a download.

Its card, src/evae/example/README.md, names the data, their source and licence, and how good it is.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line asks for the name alone, and starts without it
    import anndata as ad

NAME = "example"
FOLDER = Path(__file__).resolve().parents[1] / "example"
STRONG = "STAT1"  # a knock-out with a strong effect, to begin with
CONTROLS = "controls.h5ad"


def is_example(path_or_id: str | Path) -> bool:
    """Whether the model that the package carries is meant; a folder of that name goes first."""
    return str(path_or_id) == NAME and not Path(path_or_id).is_dir()


def example_controls() -> "ad.AnnData":
    """Control cells for the example model.

    Returns:
        AnnData of 300 THP-1 cells with a non-targeting guide, 299 genes, raw counts in X (CSR float32); obs
        `perturbation` ("non-targeting") and `cell_type` ("rep_3", the batch). Source: Papalexi et al. (2021).
    """
    import anndata as ad

    return ad.read_h5ad(FOLDER / CONTROLS)
