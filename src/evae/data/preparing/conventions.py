"""Columns and control label of a file, where the user does not name them: by the names that are usual in the field.

scPerturb (Peidli et al. 2024): `perturbation`, `nperts` (0 for controls), `dose_value`, `cell_line`, `celltype`.
pertpy and Seurat: `gene_target` beside a `perturbation` that says only NT or Perturbed. Tahoe-100M: `drug`,
`cell_line_id`, `plate`. Whatever is chosen is said, and where several could be meant nothing is chosen.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evae.common.messages import number_of
from evae.models.contract_evae import EvaeError
from evae.models.treatments_evae import Treatment

PERTURBATION = (
    *("perturbation", "gene_target", "target_gene", "gene", "target", "condition", "drug", "treatment", "cytokine"),
    *("product_name", "perturbation_name", "gene_name", "pert", "stim"),
)
CELL_TYPE = ("cell_type", "cell_line", "celltype", "cell_line_id", "cell_name", "cell_type_name", "cellline")
CONTROLS = (
    *("control", "ctrl", "controls", "non-targeting", "non_targeting", "nontargeting", "nt", "ntc", "negctrl"),
    *("neg_ctrl", "negative_control", "dmso", "dmso_tf", "vehicle", "untreated", "unstimulated", "unperturbed"),
    *("mock", "pbs", "safe-targeting", "scramble", "scrambled"),
)
TREATMENT = {  # of scPerturb, sci-Plex and Tahoe-100M
    "dose": ("dose_value", "dose"),
    "time": ("time", "time_point", "timepoint"),
    "kind": ("perturbation_type", "perturbation_kind"),
}
GLOBAL = {"perturbed", "nt", "control", "ko", "np"}  # labels that say whether, not what

Labels = Callable[[str], tuple[np.ndarray, list[str]]]


@dataclass(frozen=True)
class Named:
    """What cells are labelled by.

    Attributes:
        perturbation_key, cell_type_key: obs columns.
        control: label of unperturbed cells.
        notes: sentences on what was chosen, and on what else the columns say.
        treatments: label -> treatment, where labels say more than a name (see `evae.data.preparing.treatments`).
    """

    perturbation_key: str
    cell_type_key: str
    control: str
    notes: list[str]
    treatments: Mapping[str, Treatment] = field(default_factory=dict)


def find_names(
    columns: Iterable[str],
    labels: Labels,
    perturbation_key: str | None = None,
    cell_type_key: str | None = None,
    control: str | None = None,
    told_apart: Iterable[str] = (),
) -> Named:
    """The columns and the control that the user did not name.

    Args:
        columns: the obs columns that all files have.
        labels: gives the codes (cells,) of a column, -1 where missing, and the names.
        perturbation_key, cell_type_key, control: what the user named, None where not.
        told_apart: columns by which treatments of a perturbation are told apart.

    Raises:
        EvaeError: several could be meant, or none.
    """
    known, notes = list(columns), []
    if perturbation_key is None:
        perturbation_key = find_perturbation(known, labels)
        if any(column in known for column in PERTURBATION if column != "perturbation"):
            notes.append(f"perturbations are named by obs column '{perturbation_key}'")
    if cell_type_key is None:
        cell_type_key = _cell_type(known, labels)
        if any(column in known for column in CELL_TYPE if column != "cell_type"):
            notes.append(f"cell types are named by obs column '{cell_type_key}'")
    if control is None and perturbation_key in known:
        control, why = _control(known, labels, perturbation_key)
        notes.append(f"the control is '{control}', {why}")
    if control is None:
        control = CONTROLS[0]  # the missing column is named by its reader
    notes += _also(known, labels, perturbation_key, set(told_apart))
    return Named(perturbation_key, cell_type_key, control, notes)


def find_perturbation(known: Sequence[str], labels: Labels) -> str:
    """The column that names the perturbation."""
    found = [column for column in PERTURBATION if column in known]
    if "perturbation" in found:
        names = {name.lower() for name in labels("perturbation")[1]}
        if not ("gene_target" in found and names <= GLOBAL):
            return "perturbation"
        found.remove("perturbation")  # as of pertpy: it says whether a cell is perturbed, not by what
        return "gene_target"
    return _only(found, "perturbation", "perturbation_key") or PERTURBATION[0]


def _cell_type(known: Sequence[str], labels: Labels) -> str:
    found = [column for column in CELL_TYPE if column in known]
    if "cell_type" in found:
        return "cell_type"
    varying = [column for column in found if len(labels(column)[1]) > 1]
    if len(varying) > 1 and any(not _same(labels(varying[0])[0], labels(other)[0]) for other in varying[1:]):
        _only(varying, "cell type", "cell_type_key")
    return next(iter(varying or found), CELL_TYPE[0])


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two columns divide the cells in the same way."""
    pairs = len(np.unique(np.stack([a, b]), axis=1).T)
    return pairs == len(np.unique(a)) == len(np.unique(b))


def _only(found: Sequence[str], what: str, argument: str) -> str | None:
    if len(found) > 1:
        raise EvaeError(
            f'several obs columns could name the {what} ({", ".join(found)}); say which: {argument}="{found[0]}".'
        )
    return found[0] if found else None


def _control(known: Sequence[str], labels: Labels, key: str) -> tuple[str, str]:
    """The label of control cells, and by what it was told."""
    codes, names = labels(key)
    if "nperts" in known:
        counted, numbers = labels("nperts")
        none = np.isin(counted, [i for i, number in enumerate(numbers) if number in ("0", "0.0")])
        found = [names[c] for c in np.unique(codes[none]) if c >= 0]
        if len(found) == 1:
            return found[0], "of whose cells nperts is 0"
    else:
        found = [name for name in names if name.lower().replace(" ", "-") in CONTROLS]
        if len(found) == 1:
            return found[0], f"the only usual name of a control in obs column '{key}'"
    shown = ", ".join(f"'{name}'" for name in (found or names)[:5])
    what = f"several labels could be the control ({shown})" if found else "no label has a usual name of a control"
    more = "" if found else f" (labels are {shown}, ...)"
    raise EvaeError(f"obs column '{key}': {what}{more}; say which is: control=\"{(found or names)[0]}\".")


def _unasked(labels: Labels, column: str) -> tuple[np.ndarray, Sequence[str]]:
    """Codes and names of a column that nobody asked for; none where it cannot be read, which then is no error."""
    try:
        return labels(column)
    except EvaeError:
        return np.zeros(0, dtype=int), []


def _also(known: Sequence[str], labels: Labels, key: str, told_apart: set[str]) -> list[str]:
    """What a user of these columns should know: treatments that are put together, combinations of another sign."""
    notes = []
    for what, columns in TREATMENT.items():
        column = next((c for c in columns if c in known), None)
        if column is None or told_apart & {*columns, "labels"}:
            continue
        _, found = _unasked(labels, column)
        if len(found) < 2:
            continue
        notes.append(
            f"{column} holds {len(found)} {what}s; cells of all {what}s count as one perturbation: tell them apart "
            f"with {what}_key={column}, or keep one, and that of the controls, with --where {column}={found[-1]}"
        )
    if "nperts" in known and key in known:
        codes, names = labels(key)
        counted, numbers = _unasked(labels, "nperts")
        codes = codes[: len(counted)]
        several = np.isin(counted, [i for i, n in enumerate(numbers) if n not in ("0", "0.0", "1", "1.0")])
        combined = [names[c] for c in np.unique(codes[several]) if c >= 0 and "+" not in names[c]]
        if combined:
            notes.append(
                f"{number_of(len(combined), 'label names', 'labels name')} several perturbations (nperts) without a "
                f"'+', such as '{combined[0]}': name their sign when training, as in combination_sign=_"
            )
    return notes
