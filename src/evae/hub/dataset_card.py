"""The card of a dataset as it goes to the Hub: the folder's own, with its id, licence, labels and sources."""

import yaml
from huggingface_hub import DatasetCard

from evae.data.format import DatasetInfo
from evae.models.contract_evae import EvaeError

SHOWN = 12  # names of a vocabulary in the card; the rest is in its Parquet file
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def published_card(local: str, repo_id: str, info: DatasetInfo, licence: str) -> str:
    """Turn the README.md of a dataset folder into that of its repository.

    Args:
        local: text of the folder's README.md.
        repo_id: the Hub id.
        info: the dataset.
        licence: of the data, as the Hub names licences.

    Raises:
        EvaeError: the folder's README.md has no YAML header.
    """
    try:
        card = DatasetCard(local) if local.startswith("---") else None
    except (ValueError, TypeError, yaml.YAMLError):
        card = None
    if card is None or "configs" not in card.data:
        raise EvaeError("the dataset's README.md has no YAML header that names its files; prepare the dataset anew.")
    n_cells = sum(info.n_cells.values())
    size = next((name for limit, name in SIZES if n_cells < limit), "1M<n<10M" if n_cells < 10**7 else "10M<n<100M")
    facts = {"license": licence, "pretty_name": repo_id.split("/")[1], "size_categories": [size]}
    for name, value in facts.items():
        card.data[name] = value
    card.text = card.text.replace("PATH_OR_ID", f'"{repo_id}"')
    return f"{card}{_vocabularies(info)}{_sources(info)}"


def _vocabularies(info: DatasetInfo) -> str:
    lines = ["", "## Labels", ""]
    for column, names in (("perturbation", info.perturbations), ("cell_type", info.cell_types)):
        more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        lines.append(f"* `{column}` ({len(names):,}): {', '.join(f'`{name}`' for name in names[:SHOWN])}{more}")
    return "\n".join(lines) + "\n"


def _sources(info: DatasetInfo) -> str:
    lines = [
        "",
        "## Sources",
        "",
        "| file | cells | genes | share of the panel | SHA-256 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for s in info.statistics["sources"]:
        lines.append(
            f"| {s['file']} | {s['n_cells']:,} | {s['n_genes']:,} | {s['panel_coverage']:.0%} | `{s['sha256']}` |"
        )
    return "\n".join(lines) + "\n"
