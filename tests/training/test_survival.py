"""Killed, stopped and spread over ranks: the same weights come out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TOY, REAL = Path(__file__).with_name("toy_run.py"), Path(__file__).with_name("real_run.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def survivors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survival")
    done = call(sys.executable, TOY, "suite", folder)
    return folder, json.loads(done.stdout), done.stderr


def call(*command, **values):
    arguments = [*map(str, command), *(f"{k}={v}" for k, v in values.items())]
    done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def tormented(dataset, tmp_path_factory):
    done = call(sys.executable, REAL, dataset, tmp_path_factory.mktemp("tormented"))
    return json.loads(done.stdout), done.stderr


def assert_weights_close(first, second):
    one, two = (load_file(folder / "model.safetensors") for folder in (first, second))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=0)


def same_end(folder, result):
    """Whether the run ended with the weights and the optimiser of the run that was left alone."""
    whole, out = folder / f"whole-{result['world']}", Path(result["out"])
    last = "checkpoints/step-00000012"
    for name in ("model.safetensors", f"{last}/optimizer.safetensors", f"{last}/average.safetensors"):
        expected, found = load_file(whole / name), load_file(out / name)
        if expected.keys() != found.keys() or not all(torch.equal(expected[k], found[k]) for k in expected):
            return False
    return not list(out.rglob(".partial*"))


def comparable(out):
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("cells_per_second", "data_wait", "seconds")} for line in lines]


def test_killed_at_any_point_a_resumed_run_ends_with_the_same_weights(survivors):
    folder, results, stderr = survivors
    killed = {name: r for name, r in results.items() if not name.startswith("term")}
    assert len(killed) == 18
    for name, result in killed.items():
        # of two ranks one is killed; the other is killed too, or ends by itself for want of the first
        assert -9 in result["first"], f"{name} was not killed: {result}"
        assert 0 not in result["first"], f"{name} went on: {result}"
        assert set(result["second"]) == {0}, f"{name} did not resume: {stderr[-2000:]}"
        assert same_end(folder, result), f"{name} ended with other weights"
        assert comparable(result["out"]) == comparable(folder / f"whole-{result['world']}"), name


def test_sigterm_writes_a_checkpoint_and_exits_143(survivors):
    folder, results, _ = survivors
    for world, last in ((1, 7), (2, 9)):  # one rank stops at once, two at the next line of the log
        result = results[f"term ranks {world}"]
        assert set(result["first"]) == {30 + 143}, result  # SystemExit(143)
        assert result["reached"][-1] == last
        assert same_end(folder, result)


def test_two_ranks_equal_one_with_twice_the_batch(toy, tmp_path):
    """Same cells, float32, no dropout: weights within 1e-5, losses within 1e-5."""
    values = {"max_steps": 8, "warmup_steps": 2, "eval_every": 4, "save_every": 4, "log_every": 2}
    values |= {"max_grad_norm": 0.5, "dropout": 0.0, "portable": True}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    call(*torchrun, TOY, "train", batch_size=4, output_dir=tmp_path / "two", **values)
    toy.run_toy(batch_size=8, output_dir=tmp_path / "one", **values)
    assert_weights_close(tmp_path / "one", tmp_path / "two")
    for a, b in zip(comparable(tmp_path / "one"), comparable(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    ranks = list((tmp_path / "two/checkpoints/step-00000008").glob("rank-*.json"))
    assert len(ranks) == 2, "torchrun made two runs of one rank"


def test_two_ranks_go_on_from_one(survivors):
    """With a portable source and the same cells a step, the number of ranks may change half-way through."""
    folder, _, _ = survivors
    assert len(list((folder / "handed/checkpoints/step-00000008").glob("rank-*.json"))) == 2
    assert_weights_close(folder / "one", folder / "handed")


@pytest.mark.parametrize(
    "case", ["tokenizer", "tokenizer ranks 2", "streamed tokenizer ranks 2", "prior", "prior bf16", "prior fsdp"]
)
def test_killed_at_named_points_both_stages_end_with_the_same_weights(tormented, case):
    results, stderr = tormented
    found = results[case]
    assert set(found["whole"]) == {0}, stderr[-3000:]
    assert all(-9 in codes and 0 not in codes for codes in found["killed"]), f"{found}\n{stderr[-3000:]}"
    assert found["same"], f"{found}\n{stderr[-3000:]}"


def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_when_there_is_room(tormented):
    results, stderr = tormented
    found = results["full disk"]
    assert found["cramped"] == [1]
    assert "free space there, or make it writable, then start again with resume=true" in stderr
    assert found["resumed"] == [0]
    assert found["same"]


@pytest.mark.parametrize(("moment", "reached"), [("encoding", []), ("starting", []), ("step", [2])])
def test_one_rank_of_two_that_gets_sigterm_ends_both_in_order(tormented, moment, reached):
    """Not only in the loop: none waits for a rank that has left. They stop when they next write a line of the log."""
    results, stderr = tormented
    expected = {"codes": [30 + 143] * 2, "reached": reached, "left": bool(reached)}  # SystemExit(143)
    assert results["told"][moment] == expected, stderr[-3000:]


@pytest.mark.parametrize("pair", ["tokenizer", "prior", "prior fsdp", "prior compiled", "prior compiled fsdp"])
def test_two_ranks_equal_one_with_twice_the_batch_in_both_stages(tormented, pair, request):
    """Split counts, drawn genes, left-out conditions and all, in float32: losses within 1e-5, weights within 1e-4."""
    if "compiled" in pair:
        request.getfixturevalue("compiler")
    results, stderr = tormented
    found = results["equal"][pair]
    said = stderr.partition(f"== {pair} ==")[2].partition("\n== ")[0]
    assert found["losses"] is not None, f"{found}\n{said}"
    assert found["losses"] < 1e-5, f"{found}\n{said}"
    assert found["weights"] < 1e-4, found
    assert found["mean"] < 5e-4, found
