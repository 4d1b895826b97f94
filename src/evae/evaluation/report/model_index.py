"""From a result file to the `model-index` of a model card, so that the Hub shows the numbers."""

import json
from pathlib import Path
from typing import Any

from evae.evaluation.metrics.labels import METRIC_LABELS
from evae.evaluation.systems.baselines import MODEL
from evae.models.contract_evae import EvaeError

# group, level, metrics that a card shows
SHOWN = (
    ("robust", "pooled", ("fd", "mmd2_mix_biased", "mmd2_mix_unbiased", "w2")),
    ("paper", "pooled", ("fd", "mmd2_mix_biased", "w2")),
    ("perturbation", "pair", ("pearson_delta", "discrimination_l1", "mae")),
    ("differential expression", "pair", ("overlap_at_N", "pr_auc", "de_spearman_lfc_sig")),
)
TASK = {"type": "single-cell-perturbation-prediction", "name": "Single-cell perturbation prediction"}


def model_index(
    result: str | Path | dict[str, Any], model_name: str, dataset_name: str, dataset_id: str
) -> list[dict[str, Any]]:
    """The `model-index` entry of a model card's YAML header.

    Args:
        result: the JSON file of an evaluation, or what it holds.
        model_name: the model's name.
        dataset_name: the dataset's name for people.
        dataset_id: its Hub id, or a short name where it has none.

    Returns:
        A list for the key `model-index`; values that are not defined are left out.

    Raises:
        EvaeError: the file is not the result of an evaluation.
    """
    if not isinstance(result, dict):
        path = Path(result)
        try:
            result = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise EvaeError(f"{path} is no result of an evaluation ({error}); give the result.json of one.") from error
    if not isinstance(result, dict) or "summary" not in result:
        raise EvaeError("the JSON file holds no summary; give the result.json that an evaluation wrote.")
    rows = {(row["group"], row["level"], row["metric"]): row for row in result["summary"] if row["system"] == MODEL}
    results = []
    for group, level, metrics in SHOWN:
        found = [rows[(group, level, metric)] for metric in metrics if (group, level, metric) in rows]
        shown = [
            {
                "type": row["metric"],
                "name": f"{METRIC_LABELS[row['metric']].text} ({group})",
                "value": row["value"],
            }
            for row in found
            if row["value"] is not None
        ]
        if shown:
            dataset = {"type": dataset_id, "name": dataset_name, "config": group, "split": "test"}
            results.append({"task": TASK, "dataset": dataset, "metrics": shown})
    return [{"name": model_name, "results": results}]
