"""What stands on the page in words: sentences that say what one sees, and the table of the genes that change.

Names of cells, genes and files come from users, so they are escaped where they enter a page.
"""

import math
from collections.abc import Sequence
from html import escape

from evae.app.answer import Answer
from evae.app.offered import Offered
from evae.common.messages import number_of
from evae.inference.example import NAME

TOP_GENES = 15  # rows of the table
NAMED = 3  # genes of a sentence
SUPPORT = {
    "seen together": "Training saw cells of this pair.",
    "seen apart": "Training saw the perturbation and the cell type, but never together.",
    "seen otherwise": "Training saw the perturbation with another dose, time or kind.",
    "unseen": "Training never saw this pair, nor both of its parts.",
}
UNCALIBRATED = "not calibrated"  # the remark of such a model
EXAMPLE = "The example model: THP-1 cells with CRISPR knock-outs around interferon (Papalexi et al. 2021)."
CAUTION = (
    "Small p-values mean that so many predicted cells differ from the controls, not that the model is right; the "
    "spread over further predictions says how sure it is. Predictions are hypotheses for experiments."
)


def said(answer: Answer) -> str:
    """What one sees, as HTML."""
    changed = answer.changed()
    more, less = int((changed["log2_fold_change"] > 0).sum()), int((changed["log2_fold_change"] <= 0).sum())
    n_genes = len(answer.table)
    if len(changed):
        best = ", ".join(
            f"{escape(str(r.gene))} ({_signed(r.log2_fold_change)})" for r in changed.head(NAMED).itertuples()
        )
        genes = f"Of {number_of(n_genes, 'gene')}, {less:,} fall and {more:,} rise (FDR below 5%), most surely {best}."
    else:
        genes = f"None of {number_of(n_genes, 'gene')} changes with an FDR below 5%."
    support = str(answer.predicted.obs["support"].iloc[0])
    notes = [SUPPORT.get(support, support)]
    notes.append(trust(answer))
    coverage = float(answer.predicted.uns["evae"].get("gene_coverage", 1.0))
    if coverage < 1:
        notes.append(f"The controls measure {coverage:.0%} of the model's genes.")
    pair = f"{escape(answer.perturbation)} in {escape(answer.cell_type)}"
    return (
        f"<h2>{pair}</h2><p><b>{number_of(answer.predicted.n_obs, 'predicted cell')}</b> beside "
        f"{number_of(answer.controls.n_obs, 'control cell')}. {genes}</p><p "
        f"class='quiet'>{' '.join(filter(None, [*notes, CAUTION]))}</p>"
    )


def trust(answer: Answer) -> str:
    """How far held-out pairs say that this one may be trusted, as HTML; "" for a model that was not calibrated."""
    row = answer.table.iloc[0]
    if math.isfinite(row["expected_correlation"]):
        return (
            f"Held-out pairs let expect a correlation of {row['expected_correlation']:.2f} between the predicted and "
            f"the real change of the genes' means."
        )
    return "" if row["remark"] == UNCALIBRATED else f"How far to trust it is not known: {escape(str(row['remark']))}."


def top_genes(answer: Answer) -> str:
    """The surest genes as a table in HTML; fold changes in log2, shares in percent."""
    heads = ("gene", "change, log2", "FDR", "cells with it")
    lines = [
        (
            escape(str(row.gene)),
            f"{_signed(row.log2_fold_change)} ± {row.spread:.2f}",
            f"{row.fdr:.0e}".replace("e-0", "e-").replace("e+00", ""),
            f"{row.share_control:.0%} → {row.share:.0%}",
        )
        for row in answer.table.head(TOP_GENES).itertuples()
    ]
    head = "".join(f"<th scope='col'>{name}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines)
    caption = "The surest genes, controls → predicted"
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def about(model: Offered) -> str:
    """What a model is, as HTML."""
    processor = model.pipe.processor
    what = EXAMPLE if model.name == NAME else f"{escape(model.name)}."
    sizes = (
        f"{number_of(len(model.perturbations()), 'perturbation')}, {number_of(len(processor.cell_types), 'cell type')}"
    )
    return f"<p>{what} It knows {sizes} and {number_of(len(processor.genes), 'gene')}.</p>"


def taken(name: str, n_cells: int, notes: Sequence[str]) -> str:
    """What was read of an upload, as HTML."""
    more = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<p role='status'><b>{escape(name)}</b>: {number_of(n_cells, 'control cell')}.</p>" + (
        f"<ul>{more}</ul>" if more else ""
    )


def trouble(error: Exception) -> str:
    """What is wrong and how to mend it, as HTML, in the words of the page's fields."""
    text = str(error)
    for argument, field in FIELDS.items():
        text = text.replace(f"{argument}=", f"{field}: ")
    return f"<p role='alert' class='trouble'>{escape(text)}</p>"


FIELDS = {
    "perturbation_key": "Column of perturbations",
    "cell_type_key": "Column of cell types",
    "control": "Label of controls",
}


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")
