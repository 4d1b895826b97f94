"""From a result file to what the Hub shows of it: `.eval_results/*.yaml` of a model, tasks of a benchmark.

A number in `.eval_results` names a dataset of the Hub and one of its tasks; it stands on the model's page and on the
dataset's leaderboard. Where the data are not on the Hub, the older `model-index` of the model card says the numbers.
Format: https://huggingface.co/docs/hub/eval-results
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from evae.evaluation.metrics.facts import shown
from evae.evaluation.systems.names import MODEL
from evae.models.contract_evae import EvaeError

TASK, TASK_NAME = "single-cell-perturbation-prediction", "Single-cell perturbation prediction"


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
    return eval_results_to_model_index(model_name, eval_results(result, dataset_name, dataset_id))


def eval_results(result: str | Path | dict[str, Any], dataset_name: str, dataset_id: str) -> list[EvalResult]:
    """The numbers of a model that its card shows, one `EvalResult` each; arguments as for `model_index`."""
    rows = {(row["group"], row["level"], row["metric"]): row["value"] for row in _of_the_model(result)}
    return [
        EvalResult(
            task_type=TASK,
            task_name=TASK_NAME,
            dataset_type=dataset_id,
            dataset_name=dataset_name,
            dataset_config=table.group,
            dataset_split="test",
            metric_type=metric.name,
            metric_name=f"{metric.title} ({table.group})",
            metric_value=rows[(table.group, table.level, metric.name)],
        )
        for table, metrics in shown("card")
        for metric in metrics
        if rows.get((table.group, table.level, metric.name)) is not None
    ]


def eval_entries(
    result: str | Path | dict[str, Any], dataset_id: str, revision: str | None = None
) -> list[dict[str, Any]]:
    """What `.eval_results/*.yaml` of the model holds, as `huggingface_hub.eval_result_entries_to_yaml` writes it.

    Args:
        result: as for `model_index`.
        dataset_id: Hub id of the dataset whose held-out cells were predicted.
        revision: its commit; None if not known.
    """
    commit = {"revision": revision} if revision else {}
    return [
        {
            "dataset": {"id": dataset_id, "task_id": task_id(str(found.dataset_config), found.metric_type), **commit},
            "value": found.metric_value,
            "notes": f"{found.metric_name}, by evae evaluate",
        }
        for found in eval_results(result, dataset_id, dataset_id)
    ]


def task_id(group: str, metric: str) -> str:
    """The name of a number as a task of a benchmark, such as "robust_fd"."""
    return f"{group}_{metric}".replace(" ", "_")


def benchmark(name: str) -> dict[str, Any]:
    """What `eval.yaml` of a dataset holds, so that the Hub shows it as a benchmark: a task for each number of a card.

    Args:
        name: of the benchmark, for people.
    """
    tasks = [task_id(table.group, metric.name) for table, metrics in shown("card") for metric in metrics]
    return {
        "name": name,
        "description": f"{TASK_NAME}: the held-out cells are predicted from controls and training cells.",
        "evaluation_framework": "evae",
        "tasks": [{"id": task, "config": "cells", "split": "test"} for task in tasks],
    }


def _of_the_model(result: str | Path | dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the model in the summary of a result."""
    if not isinstance(result, dict):
        path = Path(result)
        try:
            result = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise EvaeError(f"{path} is no result of an evaluation ({error}); give the result.json of one.") from error
    if not isinstance(result, dict) or "summary" not in result:
        raise EvaeError("the JSON file holds no summary; give the result.json that an evaluation wrote.")
    return [row for row in result["summary"] if row["system"] == MODEL]
