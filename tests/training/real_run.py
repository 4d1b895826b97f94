"""Both stages through their real entry points, killed at named points.

    python real_run.py DATASET DIR    prints JSON: for every case the exit codes and whether the weights are the same

Between the kills a checkpoint is written after every step.
"""

import json
import os
import resource
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from datasets import load_dataset
from safetensors.torch import load_file
from toy_run import fork_ranks, install_kill_points, kill_if

from evae.models import EvaeModel
from evae.training.loop import steps as loop
from evae.training.prior import train_prior
from evae.training.resume.checkpoint import list_checkpoints
from evae.training.settings import load_settings
from evae.training.tokenizer import train_tokenizer

SHORT = {"max_steps": 8, "batch_size": 16, "gradient_accumulation_steps": 2, "warmup_steps": 2, "ema_decay": 0.5}
SHORT |= {"save_every": 3, "eval_every": 4, "log_every": 2, "learning_rate": 1e-2, "mixed_precision": "no"}
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
TOKENIZER = SIZES | {"encoder": "mlp", "decoder": "mlp", "encoder_layers": 1, "decoder_layers": 1, "n_latents": 4}
TOKENIZER |= {"fsq_levels": [4, 4], "standardize_latents": True, "condition_on_library": True, "count_splitting": True}
PRIOR = SIZES | {"num_hidden_layers": 2, "dropout": 0.1}
READS_CONTROLS = PRIOR | {"source_cells": 1, "condition_on_effect": True}
# what `accelerate launch` makes of an `accelerate config` with FSDP
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
FSDP |= {"FSDP_TRANSFORMER_CLS_TO_WRAP": "ModulatedBlock"}
# name: stage, ranks, environment, where the last rank is killed, one kill after the other; a prior of one rank reads
# control cells, so that pairs and effects have to come back too
CASES = {
    "tokenizer": ("tokenizer", 1, {}, ["write:6", "update:3"]),  # in the second checkpoint, then three steps on
    "tokenizer ranks 2": ("tokenizer", 2, {}, ["update:4"]),
    "streamed tokenizer ranks 2": ("streamed", 2, {}, ["update:4"]),
    "prior": ("prior", 1, {}, ["write:3"]),  # in the first checkpoint
    "prior bf16": ("prior", 1, {}, ["update:4"]),
    "prior fsdp": ("prior", 2, FSDP, ["write:2"]),
}


def train(kind, **values):
    if values.get("compile"):  # traced and differentiated as always, then run as traced: no code is waited for
        torch.compile = partial(torch.compile, backend="aot_eager")
    settings = [f"{key}={json.dumps(value)}" for key, value in (SHORT | values).items()]
    if kind == "streamed":  # the tokenizer on cells that HF `datasets` filters
        cells = load_dataset(values["dataset"], split="train", streaming=True)
        cells = cells.filter(lambda cell: cell["library_size"] % 10)
        train_tokenizer(load_settings("tokenizer", None, settings), cells=cells)
    else:
        (train_prior if kind == "prior" else train_tokenizer)(load_settings(kind, None, settings))


def same_weights(first, second, atol=0.0):
    one, two = (load_file(f"{run}/model.safetensors") for run in (first, second))
    return one.keys() == two.keys() and all(torch.allclose(one[k], two[k], rtol=0, atol=atol) for k in one)


def train_to_a_kill_point(kind, **values):
    update = loop._Loop._update

    def update_late(*args):
        kill_if("update")
        return update(*args)

    install_kill_points()
    loop._Loop._update = update_late
    train(kind, **values)


def torment(folder, name, values):
    """One case: a run left alone, and one that is killed and resumed."""
    kind, world, environment, kills = CASES[name]
    model = TOKENIZER if kind != "prior" else READS_CONTROLS if world == 1 else PRIOR
    values = values | {"kind": kind, "model": model} | ({"mixed_precision": "bf16"} if "bf16" in name else {})
    whole, killed = f"{folder}/{name} whole", f"{folder}/{name} killed"
    found = {"whole": fork_ranks(world, environment, train, output_dir=whole, **values), "killed": []}
    between = values | {"output_dir": killed, "resume": True, "save_every": 1}
    for kill in kills:
        there = environment | {"KILL": kill, "KILL_RANK": str(world - 1)}
        found["killed"].append(fork_ranks(world, there, train_to_a_kill_point, **between))
    found["resumed"] = fork_ranks(world, environment, train, output_dir=killed, resume=True, **values)
    found["same"] = set(found["resumed"]) == {0} and same_weights(whole, killed)
    return found


def fill_the_disk(folder, values):
    """A run that may write no file of a checkpoint's size, and goes on when it may."""

    def cramped(**values):
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, resource.RLIM_INFINITY))
        train(**values)

    values = values | {"kind": "tokenizer", "model": TOKENIZER, "output_dir": f"{folder}/full"}
    found = {"cramped": fork_ranks(1, {}, cramped, **values)}
    found["left"] = sorted(os.listdir(f"{folder}/full"))
    found["resumed"] = fork_ranks(1, {}, train, resume=True, **values)
    found["same"] = same_weights(f"{folder}/tokenizer whole", f"{folder}/full")
    return found


def tell_one_rank(folder, values):
    """Two ranks, of which the second gets SIGTERM while they encode, before the first step, and in it."""

    def told(owner, name, **values):
        def call(*args, **keywords):
            if os.environ["RANK"] == "1" and not calls:
                os.kill(os.getpid(), signal.SIGTERM)
            calls.append(name)
            return real(*args, **keywords)

        calls, real = [], getattr(owner, name)
        setattr(owner, name, call)
        train(**values)

    moments = {"encoding": (EvaeModel, "encode"), "starting": (loop._Loop, "_restore"), "step": (loop._Loop, "_update")}
    values = values | {"kind": "prior", "model": PRIOR, "tokenizer": f"{folder}/tokenizer whole"}
    return {
        moment: {
            "codes": fork_ranks(2, {}, partial(told, *place), output_dir=f"{folder}/told {moment}", **values),
            "reached": list_checkpoints(Path(folder, f"told {moment}", "checkpoints")),
            "left": Path(folder, f"told {moment}").exists(),
        }
        for moment, place in moments.items()
    }


EQUAL = {"max_steps": 10, "warmup_steps": 2, "learning_rate": 1e-3, "log_every": 1, "eval_every": 3, "save_every": 6}
EQUAL |= {"mixed_precision": "no", "ema_decay": 0.5}
CERTAIN = PRIOR | {"dropout": 0.0}
# The loss depends neither on the bias of keys nor on what is standardised away: Adam walks them on rounding errors.
IDLE = ("k_proj.bias", "encoder.body.output_norm.bias", "encoder.body.output.bias")
FOLLOWS = "standardizer.running_mean"  # such biases, which the mean of the latents holds: compared less strictly
# name: stage, model, environment of the two ranks
PAIRS = {
    "tokenizer": ("tokenizer", TOKENIZER | {"dropout": 0.0, "loss_genes": 15}, {}),
    "prior": ("prior", CERTAIN, {}),
    "prior fsdp": ("prior", CERTAIN, FSDP),
    "prior compiled": ("prior", CERTAIN, {}),
    "prior compiled fsdp": ("prior", CERTAIN, FSDP),
}


def compare_ranks(dataset, folder, pair):
    """The largest differences between one rank with 32 cells a batch and two with 16."""
    print(f"== {pair} ==", file=sys.stderr, flush=True)
    kind, model, environment = PAIRS[pair]
    values = EQUAL | {"kind": kind, "dataset": dataset, "model": model, "gradient_accumulation_steps": 1}
    if kind == "prior":
        values |= {"tokenizer": f"{folder}/tokenizer whole"}
    runs = [f"{folder}/{pair} on {world}" for world in (1, 2)]
    codes = fork_ranks(1, {}, train, output_dir=runs[0], batch_size=32, **values)
    codes += fork_ranks(2, environment, train, output_dir=runs[1], batch_size=16, compile="compiled" in pair, **values)
    if any(codes):
        return {"codes": codes, "losses": None, "weights": None}
    one, two = (load_file(f"{run}/model.safetensors") for run in runs)
    weights = {k: (one[k] - two[k]).abs().max().item() for k in one if not k.endswith(IDLE)}
    mean = max((weights.pop(k) for k in list(weights) if k.endswith(FOLLOWS)), default=0.0)
    logs = [[json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()] for run in runs]
    losses = [[line[k] for line in log for k in ("loss", "validation_loss") if k in line] for log in logs]
    apart = max(abs(a - b) for a, b in zip(*losses, strict=True))
    return {"losses": apart, "weights": max(weights.values()), "where": max(weights, key=weights.get), "mean": mean}


def main(dataset, folder):
    torch.set_num_threads(1)
    results = {}
    for name in CASES:
        more = {"tokenizer": f"{folder}/tokenizer whole"} if name.startswith("prior") else {}
        results[name] = torment(folder, name, {"dataset": dataset} | more)
    results["full disk"] = fill_the_disk(folder, {"dataset": dataset})
    results["told"] = tell_one_rank(folder, {"dataset": dataset})
    results["equal"] = {pair: compare_ranks(dataset, folder, pair) for pair in PAIRS}
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
