"""What a run folder holds, and which command may go on with it."""

import json
import re
import shutil
from dataclasses import replace

import pytest

from evae.common.digests import file_digest
from evae.models.contract_evae import EvaeError
from evae.training.loop.schedule import learning_rate_at
from evae.training.resume.former_run import FormerRun
from evae.training.settings import Settings

SMALL = {"max_steps": 6, "batch_size": 4, "save_every": 2, "eval_every": 3, "log_every": 2, "warmup_steps": 1}


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 2}, "batch_size was 4 and is 2"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps was 1 and is 2"),
        ({"learning_rate": 0.5}, "learning_rate was 0.01 and is 0.5"),
        ({"max_steps": 5}, "max_steps was 6 and is 5, but can only be raised"),
        ({"final_weights": "best", "eval_every": 2}, "eval_every was 3 and is 2; final_weights was 'last' and is"),
        ({"seed": 1, "max_steps": 9}, "seed was 0 and is 1"),
    ],
)
def test_what_changes_the_result_is_refused_alike(toy, tmp_path, ended, changes, said):
    """Finished or not, with resume=true or without; and resume=true is not offered where it would be refused."""
    toy.run_toy(output_dir=tmp_path, **SMALL)
    if not ended:
        (tmp_path / "model.safetensors").unlink()
    before = contents(tmp_path)
    for resume in (True, False):
        with pytest.raises(EvaeError, match=re.escape(said)) as caught:
            toy.run_toy(output_dir=tmp_path, resume=resume, **SMALL | changes)
        assert "resume=true" not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("changes", [{"save_every": 3}, {"log_every": 1}, {"eval_every": 2}, {"time_steps": True}])
def test_what_leaves_the_weights_as_they_are_may_change(toy, tmp_path, changes):
    toy.run_toy(output_dir=tmp_path, **SMALL)
    assert toy.run_toy(output_dir=tmp_path, **SMALL | changes) is None
    (tmp_path / "model.safetensors").unlink()
    assert toy.run_toy(output_dir=tmp_path, resume=True, **SMALL | changes) is not None


def test_ranks_may_change_where_all_take_as_many_cells(toy, tmp_path):
    toy.run_toy(output_dir=tmp_path, **SMALL)
    settings = Settings(
        **SMALL | {"dataset": "toy", "output_dir": str(tmp_path), "learning_rate": 0.01, "mixed_precision": "no"}
    )
    former = FormerRun.read(tmp_path)
    assert former.processes == 1
    two = replace(settings, batch_size=2)
    assert former.changes(two, 2) == []
    (said,) = former.changes(settings, 2)
    assert said.endswith("start 1 process with batch_size=4, or set batch_size=2")
    (said,) = former.changes(settings, 3)
    assert said.endswith("start 1 process with batch_size=4")


def test_ranks_that_would_take_the_cells_in_another_order_are_refused(toy, tmp_path):
    toy.run_toy(output_dir=tmp_path, **SMALL)
    (tmp_path / "model.safetensors").unlink()
    record = tmp_path / "checkpoints/step-00000006/record.json"
    changed = json.loads(record.read_text())
    changed["data"]["batch_size"] = 8  # of the toy's order
    record.write_text(json.dumps(changed))
    manifest = record.with_name("manifest.json")
    listed = json.loads(manifest.read_text())
    listed["record.json"] = {"bytes": record.stat().st_size, "sha256": file_digest(record)}
    manifest.write_text(json.dumps(listed))
    before = contents(tmp_path)
    with pytest.raises(EvaeError, match="take the cells in another order than before; start 1 with batch_size 4"):
        toy.run_toy(output_dir=tmp_path, resume=True, **SMALL)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.usefixtures("all_remarks")
def test_a_run_is_trained_longer(toy, tmp_path, capsys, ended):
    """From there on the learning rate is that of a run of the new length, and the log says so."""
    toy.run_toy(output_dir=tmp_path, **SMALL)
    if not ended:
        shutil.rmtree(tmp_path / "checkpoints/step-00000006")
    reached = 6 if ended else 4
    longer = SMALL | {"max_steps": 10, "log_every": 1}
    with pytest.raises(EvaeError, match="set resume=true to train it on to step 10"):
        toy.run_toy(output_dir=tmp_path, **longer)
    resumed = toy.run_toy(output_dir=tmp_path, resume=True, **longer)
    assert len(resumed.batches.handed_out) == 10 - reached
    log = lines(tmp_path)
    rate = {step: learning_rate_at(step, peak=0.01, warmup_steps=1, max_steps=10) for step in range(10)}
    assert {line["step"]: line["learning_rate"] for line in log if line["step"] > reached and "loss" in line} == {
        step + 1: rate[step] for step in range(reached, 10)
    }
    (said,) = [line for line in log if "max_steps_before" in line]
    steps = {"step": reached, "max_steps": 10, "max_steps_before": 6}
    assert said == steps | {"learning_rate_of_next_step": rate[reached]}
    assert "max_steps raised from 6 to 10: from here on the learning rate is that of a run of 10 steps" in (
        capsys.readouterr().err
    )
    assert [line["step"] for line in log if line.get("finished")] == [10]
    assert toy.run_toy(output_dir=tmp_path, **longer) is None


def test_a_longer_run_that_is_stopped_is_not_finished(toy, tmp_path):
    """The model of the shorter run is still there."""
    toy.run_toy(output_dir=tmp_path, **SMALL)
    longer = SMALL | {"max_steps": 10}
    with pytest.raises(EvaeError, match="NaN or infinite at step 7"):
        toy.run_toy(output_dir=tmp_path, resume=True, bad_row=25, **longer)
    with pytest.raises(EvaeError, match="already holds a run; set resume=true to go on with it"):
        toy.run_toy(output_dir=tmp_path, **longer)
    assert toy.run_toy(output_dir=tmp_path, resume=True, **longer) is not None
    assert lines(tmp_path)[-1] == {"step": 10, "finished": True, "weights_of_step": 10}


def test_a_finished_run_without_checkpoints_cannot_be_trained_longer(toy, tmp_path):
    toy.run_toy(output_dir=tmp_path, **SMALL)
    shutil.rmtree(tmp_path / "checkpoints")
    assert toy.run_toy(output_dir=tmp_path, **SMALL) is None
    for resume in (True, False):
        with pytest.raises(EvaeError, match="max_steps was 6 and is 10, and its checkpoints are gone"):
            toy.run_toy(output_dir=tmp_path, resume=resume, **SMALL | {"max_steps": 10})


def test_other_data_are_no_finished_run(toy, tmp_path):
    """Another name may be the same data; whether it is, training sees."""
    toy.run_toy(output_dir=tmp_path, **SMALL)
    assert toy.run_toy(output_dir=tmp_path, dataset="./toy", **SMALL) is None  # the same place
    with pytest.raises(EvaeError, match=r"\(dataset was 'toy' and is 'other'\); set resume=true .* if the same lies"):
        toy.run_toy(output_dir=tmp_path, dataset="other", **SMALL)
    before = contents(tmp_path)
    with pytest.raises(EvaeError, match="the dataset or the tok"):
        toy.run_toy(output_dir=tmp_path, dataset="other", fingerprint="other", resume=True, **SMALL)
    assert contents(tmp_path) == before
    resumed = toy.run_toy(output_dir=tmp_path, dataset="other", resume=True, **SMALL)
    assert resumed.batches.handed_out == []
    assert toy.run_toy(output_dir=tmp_path, dataset="other", **SMALL) is None


def test_damaged_settings_are_named(toy, tmp_path):
    toy.run_toy(output_dir=tmp_path, **SMALL)
    for text in ("", "a: [", "seed: 1", "5"):
        (tmp_path / "settings.yaml").write_text(text)
        with pytest.raises(EvaeError, match=r"settings.yaml is damaged; set overwrite=true"):
            toy.run_toy(output_dir=tmp_path, resume=True, **SMALL)
    toy.run_toy(output_dir=tmp_path, overwrite=True, **SMALL)
