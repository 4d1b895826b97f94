"""Toy runs that get a signal at named points where there is nothing to save, or twice; prints JSON.

python stopped_run.py DIR
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from toy_run import SUITE, fork_ranks, kill_if, run_to_a_kill_point, run_toy

TERM, INT = signal.SIGTERM, signal.SIGINT
# name: point, ranks, the signal, how often the last rank gets it, whether the model is compiled
CASES = {
    "first step": ("compile:1", 1, TERM, 1, True),
    "second signal, no checkpoint": ("batch:3", 1, TERM, 2, False),
    "second signal": ("batch:13", 1, TERM, 2, False),
    "second signal in a checkpoint": ("write:6", 1, TERM, 2, False),
    "compiling on two ranks": ("compile:1", 2, TERM, 1, True),
    "Ctrl-C": ("batch:13", 1, INT, 1, False),
    "Ctrl-C on two ranks": ("batch:13", 2, INT, 1, False),
    "Ctrl-C while compiling": ("compile:1", 1, INT, 1, True),
    "second Ctrl-C": ("batch:13", 1, INT, 2, False),
}


def compiled_run(**values):
    """A run whose compiler is a point to be named; what it makes is the function itself."""

    def compiler(function, *args, **keywords):
        def call(*args, **keywords):
            kill_if("compile")
            return function(*args, **keywords)

        return call

    torch.compile = compiler
    run_to_a_kill_point(**values)


def main(folder):
    torch.set_num_threads(1)
    results = {}
    for name, (point, world, number, times, compiled) in CASES.items():
        out = f"{folder}/{name}"
        environment = {"KILL": point, "KILL_SIGNAL": str(int(number)), "KILL_TIMES": str(times)}
        environment |= {"KILL_RANK": str(world - 1)}
        work = compiled_run if compiled else run_to_a_kill_point
        found = {"codes": fork_ranks(world, environment, work, output_dir=out, compile=compiled, **SUITE)}
        found["left"] = sorted(os.listdir(out)) if os.path.isdir(out) else None
        found["unfinished"] = [str(path) for path in Path(out).rglob(".*")]
        found["again"] = fork_ranks(world, {}, run_toy, output_dir=out, resume=found["left"] is not None, **SUITE)
        found["finished"] = Path(out, "model.safetensors").is_file()
        results[name] = found
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
