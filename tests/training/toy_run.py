"""A run of the real loop over a toy model, to be killed, resumed and spread over ranks.

    python toy_run.py suite DIR              every kill point, each in its own process; prints JSON
    torchrun ... toy_run.py train key=value  one run on the ranks that torchrun made

Children are forked after the slow imports, so that a kill point costs a fraction of a second.
"""

import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml
from accelerate.utils import set_seed
from safetensors.torch import save_file
from torch import nn
from torch.distributed import TCPStore

from evae.training.loop.setup import make_accelerator
from evae.training.loop.stage import Stage
from evae.training.loop.steps import train
from evae.training.loop.validation import mean_loss
from evae.training.resume import checkpoint
from evae.training.resume.run_folder import FINISHED, RunFolder
from evae.training.settings import Settings

FEATURES, ROWS = 6, 50
ENDED_BY_SIGTERM = 128 + signal.SIGTERM


class ToyModel(nn.Module):
    """A small network with what checkpoints must not forget: dropout, a buffer, a frozen part."""

    def __init__(self, dropout=0.2):
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, 8), nn.Linear(8, 1)
        self.norm, self.dropout = nn.LayerNorm(8), nn.Dropout(dropout)
        self.frozen = nn.Linear(FEATURES, FEATURES).requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, y, generator=None):
        if self.training:
            self.calls += 1
        hidden = self.dropout(self.norm(self.first(self.frozen(x)).tanh()))
        return SimpleNamespace(loss=(self.second(hidden).squeeze(-1) - y).square().mean())


class ToyBatches:
    """Rows of a fixed table, in order, over and over; ranks share each stretch of the table."""

    def __init__(self, batch_size, rank=0, world_size=1, portable=True, bad_row=None):
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(ROWS, FEATURES, generator=generator)
        self.y = self.x[:, 0].sign()
        if bad_row is not None:
            self.x[bad_row] = float("nan")
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.place = {"epoch": 0, "batch": 0} | ({} if portable else {"batch_size": batch_size})
        self.handed_out = []

    def __iter__(self):
        while True:
            kill_if("batch", self.place["batch"])
            start = (self.place["batch"] * self.world_size + self.rank) * self.batch_size
            rows = (torch.arange(start, start + self.batch_size) + 7 * self.place["epoch"]) % ROWS
            self.place = self.place | {"batch": self.place["batch"] + 1}
            self.handed_out.append(rows.tolist())
            yield {"x": self.x[rows], "y": self.y[rows], "row": rows}

    def state_dict(self):
        return dict(self.place)

    def load_state_dict(self, state):
        self.place = dict(state)


def save_toy(model, folder):
    save_file(dict(model.state_dict()), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")


def toy_stage(**more):
    batches = ToyBatches(5)
    source = iter(batches)
    return Stage("toy", ("x", "y"), [next(source) for _ in range(3)], save_toy, **more)


def run_toy(dropout=0.2, portable=False, bad_row=None, fingerprint="toy", summarise=mean_loss, **values):
    """Train the toy; returns the model and the batches, or None if the run was finished."""
    settings = Settings(**({"dataset": "toy", "mixed_precision": "no", "learning_rate": 0.01} | values))
    accelerator = make_accelerator(settings)
    run = RunFolder(settings, accelerator.num_processes)
    if run.status == FINISHED:
        return None
    set_seed(settings.seed)
    model = ToyModel(dropout)
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = ToyBatches(settings.batch_size, rank, world, portable, bad_row)
    stage = toy_stage(fingerprint=fingerprint, summarise=summarise)
    train(model, batches, settings, accelerator=accelerator, run=run, stage=stage)
    return SimpleNamespace(model=model, batches=batches)


# "name:count" in KILL ends the process at the count-th passage of that name, or at that batch.
PASSED: dict[str, int] = {}


def kill_if(name, number=None):
    PASSED[name] = number if number is not None else PASSED.get(name, 0) + 1
    here = os.environ.get("RANK", "0") == os.environ.get("KILL_RANK", "0")
    if here and os.environ.get("KILL") == f"{name}:{PASSED[name]}":
        for _ in range(int(os.environ.get("KILL_TIMES", "1"))):
            os.kill(os.getpid(), int(os.environ.get("KILL_SIGNAL", signal.SIGKILL)))


def run_to_a_kill_point(**values):
    install_kill_points()
    run_toy(**values)


def install_kill_points():
    save, rename, replace, rmtree = checkpoint.save_file, os.rename, os.replace, shutil.rmtree

    def save_half(tensors, path):
        save(tensors, path)
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[: len(whole) // 2])
        kill_if("write")
        Path(path).write_bytes(whole)

    def rename_late(source, target):
        kill_if("rename")
        rename(source, target)
        kill_if("renamed")

    def replace_late(source, target):
        kill_if("replace")
        replace(source, target)
        kill_if("replaced")

    def remove_half(path, **keywords):
        files = [f for f in Path(path).rglob("*") if f.is_file()] if Path(path).is_dir() else []
        for file in files[: len(files) // 2]:
            file.unlink()
        if files:
            kill_if("remove")
        rmtree(path, **keywords)

    checkpoint.save_file, shutil.rmtree = save_half, remove_half
    os.rename, os.replace = rename_late, replace_late


SUITE = {
    "max_steps": 12,
    "batch_size": 3,
    "gradient_accumulation_steps": 2,
    "warmup_steps": 2,
    "ema_decay": 0.9,
}
SUITE |= {"save_every": 4, "log_every": 3, "eval_every": 6, "keep_checkpoints": 1}
KILLS = [
    "batch:0",
    "batch:13",
    "batch:23",
    "write:2",
    "write:6",
    "rename:1",  # the checkpoint of step 4 is set aside
    "renamed:1",
    "remove:1",
    "replace:1",  # the settings
    "replace:2",  # the log
    "replace:5",  # the manifest of the first checkpoint
    "replace:6",  # the first checkpoint gets its name
    "replaced:6",
    "replace:10",  # a later one does
    "replace:20",  # the second file of the finished model
]


def fork_ranks(world, environment, work, **values):
    """Call `work(**values)` in `world` forked processes, as torchrun would.

    Returns:
        exit codes, negative for a signal, 30 + n for SystemExit(n).
    """
    # The store of addresses is served from here, as torchrun does: no port is chosen that another process may take
    # meanwhile, and it outlives every rank.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if world > 1 else None
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            os.environ.update(environment)
            if world > 1:
                ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
                address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
                os.environ.update({k: str(v) for k, v in (ranks | address).items()})
            code = 1
            try:
                work(**values)
                code = 0
            except SystemExit as stop:
                code = 30 + int(stop.code)  # told apart from an ordinary end
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    codes = {}
    while children:
        child, status = os.wait()
        children.remove(child)
        codes[child] = os.waitstatus_to_exitcode(status)
        for other in children:  # as torchrun does when one rank dies, or ends with an error
            if codes[child] < 0 or codes[child] == ENDED_BY_SIGTERM:
                os.kill(other, signal.SIGKILL if codes[child] < 0 else signal.SIGTERM)
    return list(codes.values())


def suite(folder):
    """Uninterrupted runs, then every kill point followed by a resumed run."""
    results = {}

    def interrupt(name, world, **environment):
        out = f"{folder}/{name.replace(':', '-')}-{world}"
        first = fork_ranks(world, environment, run_to_a_kill_point, output_dir=out, **SUITE)
        reached = checkpoint.list_checkpoints(Path(out) / "checkpoints")
        second = fork_ranks(world, {}, run_toy, output_dir=out, resume=True, **SUITE)
        found = {"out": out, "world": world, "first": first, "reached": reached, "second": second}
        results[f"{name} ranks {world}"] = found

    for world in (1, 2):
        fork_ranks(world, {}, run_toy, output_dir=f"{folder}/whole-{world}", **SUITE)
        last = str(world - 1)
        for kill in KILLS if world == 1 else ["batch:13", "write:9", "replace:6"]:
            interrupt(kill, world, KILL=kill, KILL_RANK=last if kill.startswith("batch") else "0")
        interrupt("term", world, KILL="batch:13", KILL_SIGNAL=str(int(signal.SIGTERM)), KILL_RANK=last)
    hand_over(folder)
    print(json.dumps(results))


HANDED = {
    "max_steps": 8,
    "warmup_steps": 2,
    "save_every": 4,
    "eval_every": 4,
    "dropout": 0.0,
    "portable": True,
}


def hand_over(folder):
    """One rank trains 4 of 8 steps and is killed, two ranks with half the batch go on."""
    for name, environment in (("one", {}), ("handed", {"KILL": "batch:6"})):
        fork_ranks(1, environment, run_to_a_kill_point, output_dir=f"{folder}/{name}", batch_size=8, **HANDED)
    fork_ranks(2, {}, run_toy, output_dir=f"{folder}/handed", batch_size=4, resume=True, **HANDED)


def main(mode, *arguments):
    torch.set_num_threads(1)
    given = {k: yaml.safe_load(v) for k, v in (a.split("=", 1) for a in arguments if "=" in a)}
    if mode == "suite":
        suite(arguments[0])
    else:
        run_toy(**given)


if __name__ == "__main__":
    main(*sys.argv[1:])
