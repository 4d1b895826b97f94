"""Small simulated files in the exact layout of the published ones, to rehearse `reproduce.py` with."""

import json
from pathlib import Path

import anndata as ad
import pandas as pd
import scipy.sparse as sp

from evae.data.preparing.published import RemoteFile
from evae.data.preparing.published_sets import SETS, PublishedSet
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.data.simulation.screen import simulate_reversion_screen

N_CELLS = 1_000


def rehearsed(name: str, folder: Path) -> PublishedSet:
    """The published set `name` with files of simulated cells, made in `folder` and fetched from there.

    The files have the published names, obs columns, controls and genes' ids, and the split file its keys.
    """
    folder.mkdir(parents=True, exist_ok=True)
    real = SETS[name]
    if name == "telohaec":
        cells = simulate_reversion_screen(N_CELLS, n_genes=80, n_targets=24)
        return _with_files(real, folder, [cells[:, :]], None)
    cells = simulate_perturb_seq(N_CELLS, n_genes=80, n_cell_types=4, n_perturbations=8, effect_size=1.5)
    symbols = [str(gene) for gene in cells.var_names]
    targets = [str(p).removeprefix("KO-") for p in cells.uns["simulation"]["perturbations"]]
    held_out = targets[1:4]
    if name == "replogle":
        lines = dict(zip(sorted(set(cells.obs["cell_type"])), ("k562", "rpe1", "hepg2", "jurkat"), strict=True))
        gene = cells.obs["perturbation"].astype(str).str.removeprefix("KO-").replace("control", "non-targeting")
        var = pd.DataFrame({"gene_name": symbols}, index=[f"ENSG{i:011d}" for i in range(len(symbols))])
        var.index.name = "gene_id"
        kinds = cells.obs["cell_type"].map(lines)
        parts = [
            _file(cells.X[(kinds == file.cell_type).to_numpy()], {"gene": gene[kinds == file.cell_type]}, var)
            for file in real.files
        ]
        labels = {"cell_line": ["hepg2"], "gene": held_out}
    else:
        names = {"type_A": "CD4 Naive", "type_B": "CD8 Naive", "type_C": "B Naive", "type_D": "NK"}
        obs = {
            "donor": pd.Series(["Donor1", "Donor2"] * (len(cells) // 2), index=cells.obs_names),
            "cytokine": cells.obs["perturbation"].astype(str).replace("control", "PBS"),
            "cell_type": cells.obs["cell_type"].map(names),
        }
        parts = [_file(cells.X, obs, pd.DataFrame(index=symbols))]
        held_out = [f"KO-{target}" for target in held_out]
        labels = {"cell_type": ["CD4 Naive"], "cytokine": held_out}
    return _with_files(real, folder, parts, {"genes": symbols, "labels": labels})


def _file(counts: sp.csr_matrix, obs: dict[str, pd.Series], var: pd.DataFrame) -> ad.AnnData:
    return ad.AnnData(counts.astype("float32"), obs=pd.DataFrame(obs).astype("category"), var=var)


def _with_files(real: PublishedSet, folder: Path, parts: list[ad.AnnData], split: dict | None) -> PublishedSet:
    """Write the parts under the names of the published files; addresses of another kind and no sizes."""
    for file, cells in zip(real.files, parts, strict=True):
        if not (folder / file.name).is_file():
            cells.write_h5ad(folder / file.name)
    if split is not None and real.split is not None:
        (folder / real.split.name).write_text(json.dumps(split))
    local = [RemoteFile(f.name, (folder / f.name).resolve().as_uri(), cell_type=f.cell_type) for f in real.files]
    panel = None if real.split is None else RemoteFile(real.split.name, (folder / real.split.name).resolve().as_uri())
    return PublishedSet(f"REHEARSAL with simulated cells: {real.title}", local, "simulated", real.options, panel)


def reverters(screen: Path) -> list[str]:
    """The targets that truly revert the stress in a simulated screen."""
    return [str(name) for name in ad.read_h5ad(screen, backed="r").uns["simulation"]["reverters"]]
