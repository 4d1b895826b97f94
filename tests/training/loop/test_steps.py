"""The loop over a toy model, in this process."""

import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from evae.models.contract_evae import EvaeError
from evae.training.loop.step_clock import StepClock
from evae.training.loop.validation import codebook_statistics, take_cells
from evae.training.resume.checkpoint import list_checkpoints
from evae.training.resume.state import weights_of

SMALL = {"max_steps": 6, "batch_size": 4, "save_every": 2, "eval_every": 3, "log_every": 2, "warmup_steps": 1}


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_it_promises(toy, tmp_path):
    out = tmp_path / "run"
    trained = toy.run_toy(output_dir=out, **SMALL)
    assert yaml.safe_load((out / "settings.yaml").read_text())["max_steps"] == 6
    log = lines(out)
    assert [line["step"] for line in log if "loss" in line] == [2, 3, 4, 6]
    assert [line["step"] for line in log if "validation_loss" in line] == [3, 6]
    assert {"grad_norm", "learning_rate", "cells_per_second", "data_wait"} < log[0].keys()
    assert log[-1] == {"step": 6, "finished": True, "weights_of_step": 6}
    saved = load_file(out / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in weights_of(trained.model).items())
    assert not list(out.glob(".partial*"))


def test_the_time_of_a_step_in_parts(toy, tmp_path):
    toy.run_toy(output_dir=tmp_path / "run", time_steps=True, gradient_accumulation_steps=2, **SMALL)
    timed = [line for line in lines(tmp_path / "run") if "loss" in line]
    names = {"seconds_data", "seconds_forward", "seconds_backward", "seconds_optimizer"}
    for line in timed:
        assert names < line.keys()
        assert all(line[name] > 0 for name in names)


def test_a_clock_counts_the_parts_of_steps_only(monkeypatch):
    times = iter([0.0, 1.0, 3.0, 100.0, 104.0, 112.0])  # what lies between two steps belongs to neither
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    clock = StepClock(torch.device("cpu"), on=True)
    for _ in range(2):
        clock.mark()
        clock.mark("forward")
        clock.mark("optimizer")
    expected = {"seconds_data": 0, "seconds_forward": 2.5, "seconds_backward": 0, "seconds_optimizer": 5}
    assert clock.read() == expected
    assert clock.read() == {}
    off = StepClock(torch.device("cpu"), on=False)
    off.mark("optimizer")
    assert off.read() == {}


@pytest.mark.usefixtures("compiler")
def test_a_compiled_run_is_the_same_run(toy, tmp_path, monkeypatch):
    plain = toy.run_toy(output_dir=tmp_path / "a", dropout=0.0, **SMALL)
    compiled, real = [], torch.compile

    def traced(function):  # traced and differentiated as always, then run as traced: no code is waited for
        compiled.append(function)
        return real(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", traced)
    fast = toy.run_toy(output_dir=tmp_path / "b", dropout=0.0, compile=True, **SMALL)
    assert len(compiled) == 1
    losses = [[line["loss"] for line in lines(tmp_path / run) if "loss" in line] for run in "ab"]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for name, value in weights_of(fast.model).items():
        torch.testing.assert_close(value, weights_of(plain.model)[name], rtol=1e-4, atol=1e-6, msg=name)
    saved = [load_file(tmp_path / run / "model.safetensors").keys() for run in "ab"]
    assert saved[0] == saved[1]


def test_compiling_needs_a_compiler(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EvaeError, match=r"C\+\+ compiler"):
        toy.run_toy(output_dir=tmp_path / "run", compile=True, **SMALL)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("all_remarks")
def test_a_log_file_shows_how_far_the_training_is(toy, tmp_path, capsys, monkeypatch):
    """The first line of the log at once, then one every half minute, here of a clock that a step takes 10 s of."""
    times = iter(range(0, 10_000, 10))
    monkeypatch.setattr("evae.training.loop.progress.time", SimpleNamespace(monotonic=lambda: next(times)))
    toy.run_toy(output_dir=tmp_path, **SMALL | {"max_steps": 12, "log_every": 1, "eval_every": 100})
    said = [line for line in capsys.readouterr().err.splitlines() if " cells/s " in line]
    assert [line.split()[1] for line in said[:3]] == ["1/12", "4/12", "7/12"]
    assert f"loss {lines(tmp_path)[0]['loss']:.4g}" in said[0]


def test_training_lowers_the_loss(toy, tmp_path):
    toy.run_toy(output_dir=tmp_path / "run", dropout=0.0, **SMALL | {"max_steps": 40, "eval_every": 1})
    losses = [line["validation_loss"] for line in lines(tmp_path / "run") if "validation_loss" in line]
    assert losses[-1] < 0.5 * losses[0]


def test_validation_does_not_change_the_run(toy, tmp_path):
    runs = [toy.run_toy(output_dir=tmp_path / str(n), **SMALL | {"eval_every": n}) for n in (1, 100)]
    first, second = (weights_of(run.model) for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_accumulated_parts_equal_one_large_batch(toy, tmp_path):
    whole = toy.run_toy(output_dir=tmp_path / "a", dropout=0.0, **SMALL | {"batch_size": 8})
    parts = toy.run_toy(output_dir=tmp_path / "b", dropout=0.0, gradient_accumulation_steps=2, **SMALL)
    for name, value in weights_of(whole.model).items():
        if name != "calls":
            assert torch.allclose(value, weights_of(parts.model)[name], atol=1e-5), name


def test_gradients_are_clipped_to_the_norm(toy, tmp_path):
    """AdamW hides the scale of gradients above its epsilon of 1e-8; below it hardly anything moves."""
    free = toy.run_toy(output_dir=tmp_path / "a", max_grad_norm=1e3, **SMALL)
    clipped = toy.run_toy(output_dir=tmp_path / "b", max_grad_norm=1e-11, **SMALL)
    torch.manual_seed(0)
    start = toy.ToyModel().first.weight
    moved = [(run.model.first.weight - start).abs().max().item() for run in (free, clipped)]
    assert moved[1] < 0.01 * moved[0]


def test_an_existing_run_is_not_touched(toy, tmp_path):
    toy.run_toy(output_dir=tmp_path, **SMALL)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(EvaeError, match=r"resume=true .* overwrite=true"):
        toy.run_toy(output_dir=tmp_path, **SMALL | {"max_steps": 8})
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_finished_run_does_nothing_again(toy, tmp_path):
    toy.run_toy(output_dir=tmp_path, **SMALL)
    before = (tmp_path / "log.jsonl").read_text()
    assert toy.run_toy(output_dir=tmp_path, **SMALL) is None
    assert toy.run_toy(output_dir=tmp_path, resume=True, **SMALL) is None
    assert (tmp_path / "log.jsonl").read_text() == before


def test_an_unfinished_run_needs_resume_or_overwrite(toy, tmp_path):
    toy.run_toy(output_dir=tmp_path, **SMALL)
    log = (tmp_path / "log.jsonl").read_text().splitlines()
    (tmp_path / "log.jsonl").write_text("\n".join(log[:-1]) + "\n" + log[-1][:7])
    with pytest.raises(EvaeError, match="already holds a run"):
        toy.run_toy(output_dir=tmp_path, **SMALL)
    toy.run_toy(output_dir=tmp_path, resume=True, **SMALL)
    assert lines(tmp_path)[-1] == {"step": 6, "finished": True, "weights_of_step": 6}


def test_overwrite_starts_anew(toy, tmp_path):
    toy.run_toy(output_dir=tmp_path, **SMALL)
    toy.run_toy(output_dir=tmp_path, overwrite=True, **SMALL | {"max_steps": 3})
    assert list_checkpoints(tmp_path / "checkpoints")[-1] == 3
    assert max(line["step"] for line in lines(tmp_path)) == 3


def test_a_folder_with_other_files_is_refused(toy, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(EvaeError, match="holds files but no run"):
            toy.run_toy(output_dir=tmp_path, **SMALL, **flags)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_overwrite_leaves_files_that_are_not_the_runs(toy, tmp_path):
    toy.run_toy(output_dir=tmp_path, **SMALL)
    (tmp_path / "notes.txt").write_text("precious")
    toy.run_toy(output_dir=tmp_path, overwrite=True, **SMALL)
    assert (tmp_path / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.5}, "learning_rate was 0.01 and is 0.5"),
        ({"fingerprint": "other"}, "the dataset or the tok"),
    ],
)
def test_resume_refuses_another_run(toy, tmp_path, changes, message):
    toy.run_toy(output_dir=tmp_path, **SMALL)
    (tmp_path / "model.safetensors").unlink()  # as if killed before the end
    with pytest.raises(EvaeError, match=message):
        toy.run_toy(output_dir=tmp_path, resume=True, **SMALL | changes)


def test_resume_starts_where_there_is_no_run(toy, tmp_path):
    toy.run_toy(output_dir=tmp_path / "new", resume=True, **SMALL)
    assert lines(tmp_path / "new")[-1]["finished"]


def test_a_truncated_checkpoint_stops_the_resumed_run(toy, tmp_path):
    toy.run_toy(output_dir=tmp_path, **SMALL)
    (tmp_path / "model.safetensors").unlink()
    file = tmp_path / "checkpoints" / "step-00000006" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(EvaeError, match=r"has 100 of \d+ bytes; delete that folder to resume from step 4"):
        toy.run_toy(output_dir=tmp_path, resume=True, **SMALL)


def test_no_number_stops_the_run_and_saves_the_batch(toy, tmp_path):
    with pytest.raises(EvaeError, match=r"the loss became NaN or infinite at step 3; .*step 2") as caught:
        toy.run_toy(output_dir=tmp_path, bad_row=9, **SMALL | {"log_every": 6, "save_every": 2, "eval_every": 6})
    assert "\n" not in str(caught.value)
    (file,) = tmp_path.glob("nonfinite-*.safetensors")
    assert file.name == "nonfinite-step-00000003-rank-00000.safetensors"
    assert load_file(file)["part0/row"].tolist() == [8, 9, 10, 11]
    assert list_checkpoints(tmp_path / "checkpoints") == [2]
    assert all(v.isfinite().all() for v in load_file(tmp_path / "checkpoints/step-00000002/model.safetensors").values())


def scripted(*losses):
    """A summary that gives these validation losses, one after the other."""
    told = iter(losses)
    return lambda sums: {"loss": next(told)}


def test_last_checkpoints_and_the_best_are_kept(toy, tmp_path):
    values = SMALL | {"max_steps": 15, "save_every": 3, "eval_every": 3, "keep_checkpoints": 2}
    toy.run_toy(output_dir=tmp_path, summarise=scripted(0.5, 0.2, float("nan"), 0.9, 0.3), **values)
    assert list_checkpoints(tmp_path / "checkpoints") == [6, 12, 15]


def test_a_better_loss_is_saved_at_once(toy, tmp_path):
    values = SMALL | {"max_steps": 8, "save_every": 100, "eval_every": 2, "keep_checkpoints": 1}
    toy.run_toy(output_dir=tmp_path, summarise=scripted(0.5, 0.2, 0.4, 0.3), **values)
    assert list_checkpoints(tmp_path / "checkpoints") == [4, 8]


@pytest.mark.parametrize(("ema_decay", "name"), [(0.0, "model"), (0.5, "average")])
@pytest.mark.parametrize(("final_weights", "step"), [("best", 3), ("last", 6)])
@pytest.mark.usefixtures("all_remarks")
def test_final_weights(toy, tmp_path, capsys, ema_decay, name, final_weights, step):
    values = SMALL | {"ema_decay": ema_decay, "final_weights": final_weights}
    toy.run_toy(output_dir=tmp_path, summarise=scripted(0.2, 0.5), **values)
    assert lines(tmp_path)[-1]["weights_of_step"] == step
    why = "the lowest validation loss, 0.2" if final_weights == "best" else "the last"
    assert f"kept the weights of step {step}/6: {why}" in capsys.readouterr().err
    expected = load_file(tmp_path / f"checkpoints/step-{step:08d}/{name}.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(saved[key], value) for key, value in expected.items())


def test_tensorboard_gets_the_losses(toy, tmp_path):
    name = "tensorboard.backend.event_processing.event_accumulator"
    events = pytest.importorskip(name, reason="tensorboard is in the extra dev")
    toy.run_toy(output_dir=tmp_path, report_to="tensorboard", **SMALL)
    (folder,) = {file.parent for file in (tmp_path / "tensorboard").glob("events*")}
    recorded = events.EventAccumulator(str(folder))
    recorded.Reload()
    assert {"loss", "validation_loss"} <= set(recorded.Tags()["scalars"])


def test_a_tracker_that_is_not_installed_is_named(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EvaeError, match="pip install wandb"):
        toy.run_toy(output_dir=tmp_path / "run", report_to="wandb", **SMALL)
    assert not (tmp_path / "run").exists()


def test_one_process_where_several_were_asked_for(toy, tmp_path, monkeypatch):
    """What `accelerate launch --cpu --num_processes 2` (1.15) sets: an address for processes that it does not start."""
    environment = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EvaeError, match="torchrun --nproc_per_node N"):
        toy.run_toy(output_dir=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()
    monkeypatch.delenv("MASTER_ADDR")
    toy.run_toy(output_dir=tmp_path / "run", **SMALL)


def test_codebook_statistics():
    even = codebook_statistics(torch.tensor([5.0, 5.0, 5.0, 5.0]))
    assert even == {"codebook_use": 1.0, "codebook_perplexity": pytest.approx(4.0)}
    one = codebook_statistics(torch.tensor([0.0, 7.0, 0.0, 0.0]))
    assert one == {"codebook_use": 0.25, "codebook_perplexity": pytest.approx(1.0)}


def test_take_cells_stops_at_the_limit():
    taken = take_cells(({"x": torch.full((4,), i)} for i in range(9)), 6)
    assert [len(batch["x"]) for batch in taken] == [4, 2]
