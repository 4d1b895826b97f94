"""The training loop of both stages, on Accelerate, with exact checkpoints.

One step is one optimiser update. It takes `gradient_accumulation_steps` forward passes of `batch_size` cells on every
rank. The gradient is averaged over all of them, clipped, and applied by AdamW at the learning rate of schedule.py.
Between the lines of the log the host never waits for the device.

* A run killed at any moment resumes from the last checkpoint and ends with the same weights: bit for bit on a CPU, and
  on other devices if their kernels are deterministic.
* SIGTERM and Ctrl-C write a checkpoint and exit with 143 and 130.
* A NaN or infinite loss stops the run and saves the batch.
* What would change the result is refused when a run resumes (former_run.py). `max_steps` may be raised.

1, 2, 4 or 8 ranks with the same global batch see the same cells with the same random numbers. In float32 they end with
the same weights up to rounding. There are two exceptions. Dropout masks differ, because each rank draws its own. And of
several datasets, the cells of each in a step must divide among the ranks (see `Sources.batch_quotas`).
"""

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from evae.models.contract_evae import EvaeError
from evae.training.loop.progress import say_what_was_kept, training_progress
from evae.training.loop.schedule import learning_rate_at
from evae.training.loop.setup import compile_blocks, start_trackers
from evae.training.loop.stage import Batches, Stage
from evae.training.loop.step_clock import StepClock
from evae.training.loop.stopping import Termination, end_after, largest_of_ranks, save_offending_batches, stop_on_signal
from evae.training.loop.validation import Batch, to_device, validate
from evae.training.resume.checkpoint import prune_checkpoints, read_checkpoint, write_checkpoint
from evae.training.resume.run_folder import RESUMED, RunFolder
from evae.training.resume.snapshot import (
    Running,
    agreed_step,
    capture,
    cell_streams,
    load_final_weights,
    restore,
    seed_rank,
)
from evae.training.resume.state import (
    MovingAverage,
    averaged,
    build_optimizer,
    load_weights,
    reshard,
    weights_of,
    whole,
)
from evae.training.settings import Settings


def train(
    model: nn.Module,
    batches: Batches,
    settings: Settings,
    *,
    accelerator: Accelerator,
    run: RunFolder,
    stage: Stage,
) -> Path:
    """Train `model` to the end and save it.

    Args:
        model: the model to train, built with the same seed on every rank.
        batches: this rank's training batches.
        settings: steps, rates and intervals.
        accelerator: from `make_accelerator`.
        run: the output folder, fresh or to be resumed.
        stage: inputs, validation and saving.

    Returns:
        The run folder, which now holds the finished model.

    Raises:
        EvaeError: a NaN or infinite loss, a damaged checkpoint, a full disk, other data than before.
        SystemExit: code 143 after SIGTERM, 130 after Ctrl-C, and the checkpoint.
    """
    return _Loop(model, batches, settings, accelerator, run, stage).run_to_end()


class _Loop:
    """The state of one call of `train`; `now` is the part that checkpoints hold."""

    def __init__(
        self, model: nn.Module, batches: Batches, settings: Settings, accelerator: Accelerator, run: RunFolder,
        stage: Stage,
    ):  # fmt: skip
        self.settings, self.accelerator, self.run, self.stage = settings, accelerator, run, stage
        model.to(accelerator.device).train()
        if settings.compile:
            compile_blocks(model)
        self.sharded = accelerator.distributed_type == DistributedType.FSDP
        self.whole = copy.deepcopy(model) if self.sharded else model  # what is saved at the end
        if self.sharded:  # FSDP must leave frozen modules alone
            frozen = [m for m in model.children() if not any(p.requires_grad for p in m.parameters())]
            accelerator.state.fsdp_plugin.ignored_modules = frozen
        optimizer = build_optimizer(model, settings.learning_rate, settings.weight_decay)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        average = MovingAverage(model, settings.ema_decay) if settings.ema_decay else None
        self.now = Running(model, self.optimizer, batches, average)
        self.pending: list[tuple[Tensor, Tensor, list[Batch]]] = []  # steps whose loss was not fetched yet
        self.waited, self.since = 0.0, time.monotonic()
        self.notes: list[str] = []
        self.clock = StepClock(accelerator.device, settings.time_steps)

    def run_to_end(self) -> Path:
        every = self.settings
        self.accelerator.wait_for_everyone()  # until every rank has looked at the folder as it was
        self.run.begin(self.accelerator.is_main_process)
        if self.stage.keep is not None and self.accelerator.is_main_process:
            self.stage.keep()
        self.accelerator.wait_for_everyone()
        self._restore()
        title, main = self.stage.title, self.accelerator.is_main_process
        source = iter(self.now.batches)
        with (
            stop_on_signal(self.run, self.accelerator, self.settings.compile) as stop,
            training_progress(title, self.now.step, every.max_steps, main) as self.progress,
        ):
            if self.now.step:
                self.progress.say("; ".join([f"resumed after step {self.now.step}", *self.notes]))
            if told := largest_of_ranks(stop.requested, self.accelerator):
                stop.leave(told)
            self.since = time.monotonic()
            stop.phase = "first step" if self.now.step < every.max_steps else "later"
            while self.now.step < every.max_steps:
                self._update(source)
                stop.phase = "later"
                last = self.now.step == every.max_steps
                told = self._told_to_stop(stop)
                evaluating = bool(self.stage.validation) and (last or self.now.step % every.eval_every == 0)
                saving = last or bool(told) or self.now.step % every.save_every == 0
                if evaluating or saving or self.now.step % every.log_every == 0:
                    self._check_and_log_losses()
                improved = evaluating and self._evaluate()
                if saving or improved:
                    self._save()
                if told and not last:
                    self._close_trackers()
                    end_after(self.now.step, told, self.accelerator.is_main_process)
        return self._finish()

    def _update(self, source: Iterator[Batch]) -> None:
        parts = self.settings.gradient_accumulation_steps
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        losses, seen = [], []
        self.clock.mark()
        for part in range(parts):
            batch = self._next(source)
            seen.append(batch)
            moved = to_device(batch, self.accelerator.device)
            self.clock.mark("data")
            own = contextlib.nullcontext() if part == parts - 1 else self.accelerator.no_sync(self.model)
            with own:
                draws = cell_streams(self.settings, self.accelerator, self.now.step, part)
                loss = self.model(**{key: moved[key] for key in self.stage.inputs}, generator=draws).loss
                self.clock.mark("forward")
                self.accelerator.backward(loss / parts)
                self.clock.mark("backward")
            losses.append(loss.detach())
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        norm = whole({"norm": norm})["norm"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.now.step += 1
        if self.now.average:
            self.now.average.update(self.now.step)
        self.clock.mark("optimizer")
        self.pending.append((torch.stack(losses).mean().float(), norm.detach().float(), seen))

    def _rate(self) -> float:
        """The learning rate of the next step."""
        every = self.settings
        return learning_rate_at(
            self.now.step, peak=every.learning_rate, warmup_steps=every.warmup_steps, max_steps=every.max_steps
        )

    def _next(self, source: Iterator[Batch]) -> Batch:
        started = time.monotonic()
        try:
            return next(source)
        except StopIteration:
            raise EvaeError("the training data ended before max_steps; give a dataset with training cells.") from None
        finally:
            self.waited += time.monotonic() - started

    def _told_to_stop(self, stop: Termination) -> int:
        """The signal that says to stop now, or 0. Several ranks ask when they log, so all stop at the same step."""
        asking = self.accelerator.num_processes == 1 or self.now.step % self.settings.log_every == 0
        return largest_of_ranks(stop.requested, self.accelerator) if asking else 0

    def _check_and_log_losses(self) -> None:
        """Fetch the losses since the last call, stop at a NaN or infinite one, and log their mean."""
        if not self.pending:
            return
        values = torch.stack([torch.stack((loss, norm)) for loss, norm, _ in self.pending])  # (steps, 2)
        table = self.accelerator.gather(values[None]).cpu()  # (ranks, steps, 2)
        bad = (~table.isfinite()).any(dim=(0, 2)).nonzero()
        if len(bad):
            first = int(bad[0])
            step = self.now.step - len(self.pending) + first + 1
            ago = (len(self.pending) - first) * self.settings.gradient_accumulation_steps
            save_offending_batches(
                self.run, self.accelerator, step, table[:, first, 0], self.pending[first][2], self.settings,
                lambda part: self.stage.named_cells(self.now.batches, ago - part),
            )  # fmt: skip
        elapsed = max(time.monotonic() - self.since, 1e-9)
        cells = sum(len(next(iter(b.values()))) for _, _, seen in self.pending for b in seen)
        line = {
            "step": self.now.step,
            "loss": float(table[..., 0].mean()),
            "grad_norm": float(table[..., 1].mean()),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "cells_per_second": cells * self.accelerator.num_processes / elapsed,
            "data_wait": self.waited / elapsed,
        } | {"seconds": elapsed, **self.clock.read()}
        self._log(line)
        self.progress.update(self.now.step, line)
        self.pending, self.waited, self.since = [], 0.0, time.monotonic()

    def _log(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.run.log(**line)
        self.accelerator.log({k: v for k, v in line.items() if k != "step"}, step=self.now.step)

    def _evaluate(self) -> bool:
        """Validate; returns whether the loss is the lowest so far."""
        with averaged(self.now.average):
            sums = validate(
                self.now.model,
                self.stage.validation,
                self.accelerator,
                inputs=self.stage.inputs,
                tally=self.stage.tally,
                seed=self.settings.seed,
            )
            reshard(self.now.model)
        metrics = self.stage.summarise(sums)
        self._log({"step": self.now.step} | {f"validation_{k}": v for k, v in metrics.items()})
        shown = "  ".join(f"{k} {v:.4g}" for k, v in metrics.items())
        self.progress.say(f"step {self.now.step}/{self.settings.max_steps}  validation {shown}")
        self.since = time.monotonic()
        best = math.inf if self.now.best is None else self.now.best["loss"]
        improved = metrics["loss"] < best  # never true of NaN
        if improved:
            self.now.best = {"step": self.now.step, "loss": metrics["loss"]}
        return improved

    def _save(self) -> None:
        content = capture(self.now, self.accelerator, self.settings, self.stage.fingerprint)
        wait = self.accelerator.wait_for_everyone
        rank = self.accelerator.process_index
        write_checkpoint(self.run.checkpoints, self.now.step, content, rank=rank, barrier=wait)
        if rank == 0:
            best = None if self.now.best is None else int(self.now.best["step"])
            prune_checkpoints(self.run.checkpoints, self.settings.keep_checkpoints, best)

    def _restore(self) -> None:
        stored = self.run.latest_checkpoint() if self.run.status == RESUMED else None
        step = agreed_step(stored, self.accelerator)
        if step is None:
            seed_rank(self.settings, self.accelerator)
        else:
            content = read_checkpoint(self.run.checkpoints, step, rank=self.accelerator.process_index)
            self.notes = restore(self.now, content, self.accelerator, self.settings, self.stage.fingerprint)
        self.notes += self.run.notes(self._rate())
        if self.accelerator.is_main_process:
            self.run.go_on(self.now.step, self._rate())
        start_trackers(self.accelerator, self.settings, self.stage.title)

    def _finish(self) -> Path:
        """Load the weights chosen by `final_weights` into the model and save it."""
        kept = load_final_weights(self.now, self.run.checkpoints, self.settings.final_weights)
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if self.sharded:
            load_weights(self.whole, whole(weights_of(model)))
            model = self.whole
        model.eval()
        if self.accelerator.is_main_process:
            folder = self.run.final_folder()
            self.stage.save(model, folder)
            self.run.publish(folder, self.now.step, kept)
            say_what_was_kept(kept, self.now.step, self.now.best, self.settings.final_weights)
        self.accelerator.wait_for_everyone()
        self._close_trackers()
        return self.run.path

    def _close_trackers(self) -> None:
        for tracker in self.accelerator.trackers:  # not `end_training`: the ranks may train again
            tracker.finish()
