"""The dataset card: the YAML by which HF `datasets` finds the shards, and a page a person can read."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from evae.common.messages import number_of

_BODY = """
# {title}

{n_cells} x {n_genes}, raw counts, {n_perturbations} (control:
`{control}`) in {n_cell_types}. Made by `evae prepare` {version}, format {format}.

| split | cells |
| --- | --- |
{rows}

Held out: {held_out}. Cells dropped because they have no counts over the panel: {dropped}.

## Reading it

```python
from datasets import load_dataset
import numpy as np

cells = load_dataset(PATH_OR_ID, split="train", streaming=True)
genes = load_dataset(PATH_OR_ID, "genes", split="train")
cell = next(iter(cells))
numbers = np.frombuffer(cell["genes"] + cell["counts"], dtype="u1").astype(np.int64)
places, high = np.frombuffer(cell["high"], dtype="<u4").reshape(-1, 2).T    # numbers above 255, of which there are few
numbers[places] += 256 * high.astype(np.int64)
steps, counts = np.split(numbers, 2)
indices = np.cumsum(steps)    # which genes of the panel are expressed; `counts` are theirs, in the same order
```

Decode these three columns from unformatted rows, as here, or from arrow: under `with_format("numpy")` or `"torch"`
`datasets` (5.2.0) drops zero bytes at the end of a binary value.

`perturbation` and `cell_type` are class labels. `library_size` is the cell's total over all genes of the source
file; models do not read it, their library sizes are totals over the panel. Rows are in random order.
Vocabularies: configs {tables}.
Statistics: `dataset.json`. What is held out: `split.json`.
"""


def dataset_card(title: str, meta: Mapping[str, Any], split: Mapping[str, Any], sizes: Sequence[int]) -> str:
    """The text of README.md.

    Args:
        title: heading.
        meta: the content of dataset.json.
        split: the content of split.json.
        sizes: numbers of genes, perturbations, cell types and treatments.
    """
    n_cells = meta["n_cells"]
    shards = [{"split": s, "path": f"data/{s}-*.parquet"} for s, n in n_cells.items() if n]
    configs: list[dict[str, Any]] = [{"config_name": "cells", "default": True, "data_files": shards}]
    tables = ["genes", "perturbations", "cell_types", *["treatments"] * bool(sizes[3])]
    configs += [{"config_name": name, "data_files": f"{name}.parquet"} for name in tables]
    front = {"configs": configs, "tags": ["biology", "single-cell", "perturbation", "evae"]}
    body = _BODY.format(
        title=title,
        tables=", ".join(f"`{name}`" for name in tables),
        n_cells=number_of(sum(n_cells.values()), "single cell"),
        n_genes=number_of(sizes[0], "gene"),
        n_perturbations=number_of(sizes[1] - 1, "perturbation"),
        n_cell_types=number_of(sizes[2], "cell type"),
        control=meta["control"],
        version=meta["evae_version"],
        format=meta["format_version"],
        rows="\n".join(f"| {s} | {n:,} |" for s, n in n_cells.items()),
        held_out=held_out_in_words(split),
        dropped=f"{meta['dropped_cells']:,}",
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n{body}"


def held_out_in_words(split: Mapping[str, Any]) -> str:
    """What a split holds out, in some words."""
    if "cell_type" in split:
        held_out = f"{', '.join(split['cell_type'])} x {number_of(len(split['pert']), 'perturbation')}"
    elif "pairs" in split:
        held_out = f"{number_of(len(split['pairs']), '(cell type, perturbation) pair')}"
    elif "donors" in split:
        held_out = f"the perturbed cells with {split['donors']['key']} {', '.join(split['donors']['names'])}"
    else:
        return f"a random {split['random']:.0%} of the cells" if "random" in split else "nothing"
    n_left_out = len(split.get("left_out", ()))
    more = (
        f"; {number_of(n_left_out, 'further pair is', 'further pairs are')} left out, which would tell of these"
        if n_left_out
        else ""
    )
    return held_out + more
