"""How fast training, encoding and generation are, beside the published architecture, in one run.

    python scripts/benchmark.py                       # published size; minutes on a CPU thread
    python scripts/benchmark.py --rows encode,sample  # some rows
    python scripts/benchmark.py --rows design         # every option beside plain modules; --genes 500 is enough
    python scripts/benchmark.py --rows presets        # training of the small presets in bfloat16 beside float32
    python scripts/benchmark.py --quick               # toy size, to see that it runs
    python scripts/benchmark.py --operations          # how many operations an accelerator is given; seconds

A row holds a first contender, ours, and others. They take turns, several times over, on the same simulated cells; a
time is the median, and "ours is faster by" the ratio of medians. On a GPU everything runs in bfloat16. The share of
the peak compares the matrix products counted in a call with a large matrix product timed in the same run, and the
bound adds the memory that one sampling of codes must read at the speed of a large copy. Writes JSON and Markdown.
"""

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmark_design import design
from benchmark_operations import NoCard, count_row, operations_table
from benchmark_presets import presets
from benchmark_rows import ROWS, Bench, Row

MANY = {"design": design, "presets": presets}  # of these one name is many rows
NOTE = (
    "Medians of {repeats} interleaved repeats on {device}; cells with {genes:,} genes, {nonzero:.0%} of them expressed."
)


@dataclass
class Machine:
    """Where it runs, and what large products and copies reach there.

    Attributes:
        device: "cpu" or "cuda".
        flops: multiply-adds, two operations each, a second.
        bandwidth: bytes read and written a second.
    """

    device: torch.device
    flops: float = 0.0
    bandwidth: float = 0.0

    @property
    def name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s)"

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        on = self.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if on else contextlib.nullcontext()

    def seconds(self, work: Callable[[], Any]) -> float:
        """The time of one call, to its end on the device; on the CPU that of the processor, whoever else uses it."""
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        self._wait()
        started = clock()
        with self.autocast():
            work()
        self._wait()
        return clock() - started

    def busy(self, work: Callable[[], Any]) -> float | None:
        """Share of a call's time in which the GPU computes; None on a CPU."""
        if self.device.type != "cuda":
            return None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            seconds = self.seconds(work)
        return sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6 / seconds

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def measure(self) -> None:
        """Fill in what products and copies reach."""
        on_gpu = self.device.type == "cuda"
        n, dtype = (8192, torch.bfloat16) if on_gpu else (1024, torch.float32)
        a = torch.randn(n, n, device=self.device, dtype=dtype)
        b = torch.empty(2**28 if on_gpu else 2**25, device=self.device)
        c = torch.empty_like(b)
        for _ in range(3):
            self.flops = max(self.flops, 2 * n**3 / self.seconds(lambda: a @ a))
            self.bandwidth = max(self.bandwidth, 2 * 4 * b.numel() / self.seconds(lambda: c.copy_(b)))


def run_row(row: Row, machine: Machine, repeats: int) -> list[dict[str, Any]]:
    """Time the contenders of a row in turn; one record each."""
    times: dict[str, list[float]] = {name: [] for name in row.contenders}
    operations = {}
    for name, work in row.contenders.items():  # the first calls are not timed
        with FlopCounterMode(display=False) as counter, machine.autocast():
            work()
        operations[name] = counter.get_total_flops()
    for _ in range(repeats):
        for name, work in row.contenders.items():
            times[name].append(machine.seconds(work))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ours = next(iter(medians))
    return [
        {
            "row": row.title,
            "contender": name,
            "seconds": seconds,
            "cells_per_second": row.cells / seconds,
            "ours_is_faster_by": None if name == ours else seconds / medians[ours],
            "gflop_a_cell": operations[name] / row.cells / 1e9,
            "share_of_matrix_peak": operations[name] / seconds / machine.flops,
            "share_of_bound": None
            if row.bytes_read is None
            else row.bytes_read[name] / machine.bandwidth / seconds
            if name in row.bytes_read
            else None,
            "device_busy": machine.busy(row.contenders[name]),
            "times": times[name],
        }
        for name, seconds in medians.items()
    ]


def measure_memory(row: Row, machine: Machine) -> list[dict[str, Any]]:
    """Peak memory of a call beyond what was there before, of every contender."""
    peaks = {name: peak_bytes(work, machine) for name, work in row.contenders.items()}
    ours = next(iter(peaks))
    return [
        {
            "row": f"memory: {row.title}",
            "contender": name,
            "peak_mb": peak / 1e6,
            "ours_is_smaller_by": None if name == ours else peak / peaks[ours],
        }
        for name, peak in peaks.items()
    ]


def peak_bytes(work: Callable[[], Any], machine: Machine) -> float:
    """Bytes held at most while `work` runs; on the CPU the sum over torch's own record of allocations."""
    if machine.device.type == "cuda":
        before = torch.cuda.memory_allocated(machine.device)
        torch.cuda.reset_peak_memory_stats(machine.device)
        with machine.autocast():
            work()
        return torch.cuda.max_memory_allocated(machine.device) - before
    with torch.profiler.profile(profile_memory=True) as profiler:
        work()
    held = highest = 0
    for change in memory_changes(profiler):
        held += change
        highest = max(highest, held)
    return highest


def memory_changes(profiler: Any) -> Iterator[int]:
    """Bytes taken (positive) and given back (negative), in order of time."""
    events = profiler.profiler.kineto_results.events()
    changes = [e for e in events if e.name() == "[memory]"]
    yield from (e.nbytes() for e in sorted(changes, key=lambda e: e.start_ns()))


def markdown(records: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """The table for a README."""
    lines = [
        NOTE.format(**facts),
        "",
        "| | | ms a cell | cells/s | ours is faster by | share of matrix peak |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    timed = [r for r in records if "seconds" in r]
    for r, previous in zip(timed, [None, *timed], strict=False):
        title = "" if previous and previous["row"] == r["row"] else r["row"]
        ratio = "" if r["ours_is_faster_by"] is None else f"{r['ours_is_faster_by']:.3g} x"
        rate = r["cells_per_second"]
        cells = [
            title,
            r["contender"],
            three_digits(1e3 / rate),
            three_digits(rate),
            ratio,
            f"{r['share_of_matrix_peak']:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    held = [r for r in records if "peak_mb" in r]
    if held:
        lines += ["", "| | | peak MB | ours is smaller by |", "| --- | --- | --- | --- |"]
    for r in held:
        ratio = "" if r["ours_is_smaller_by"] is None else f"{r['ours_is_smaller_by']:.3g} x"
        lines.append(f"| {r['row']} | {r['contender']} | {r['peak_mb']:,.0f} | {ratio} |")
    return "\n".join(lines) + "\n"


def three_digits(number: float) -> str:
    """At least three digits, without an exponent."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {', '.join([*ROWS, *MANY])}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--nonzero", type=float, default=0.15, help="share of the genes that a cell expresses")
    parser.add_argument("--cells", type=int, help="cells of every call; a number of its own for each row if left out")
    parser.add_argument("--quick", action="store_true", help="toy size, two repeats")
    parser.add_argument("--operations", action="store_true", help="count operations instead of time; needs no GPU")
    parser.add_argument("--out", type=Path, default=Path("benchmark"), help="folder for JSON and Markdown")
    args = parser.parse_args()
    names = args.rows.split(",")
    if unknown := set(names) - {*ROWS, *MANY}:
        parser.error(f"unknown rows {', '.join(sorted(unknown))}; choose from {', '.join([*ROWS, *MANY])}")
    if args.device == "cpu":
        torch.set_num_threads(1)
    if args.operations:
        count_operations(args)
        return
    machine = Machine(torch.device(args.device))
    machine.measure()
    repeats = 2 if args.quick else args.repeats
    bench = Bench(machine.device, 60 if args.quick else args.genes, args.nonzero, args.quick, args.cells)
    records: list[dict[str, Any]] = []
    rows = (row for name in names for row in (MANY[name](bench) if name in MANY else [ROWS[name](bench)]))
    for row in rows:
        records += run_row(row, machine, repeats)
        if row.title.endswith("training step") or row.title.startswith("generated cells"):
            records += measure_memory(row, machine)
        print(markdown([r for r in records if row.title in r["row"]], facts_of(machine, bench, repeats)), flush=True)
    facts = facts_of(machine, bench, repeats)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "benchmark.json").write_text(json.dumps({"facts": facts, "records": records}, indent=1))
    (args.out / "benchmark.md").write_text(markdown(records, facts))


def count_operations(args: argparse.Namespace) -> None:
    """Count what each contender dispatches; without a GPU on tensors without values, see benchmark_operations.py."""
    card, records = None if args.device == "cuda" else NoCard(), []
    with torch.autocast("cuda", torch.bfloat16) if card is None else card.on():
        bench = Bench(
            torch.device(args.device), 60 if args.quick else args.genes, args.nonzero, args.quick, args.cells, card
        )
        for name in args.rows.split(","):
            if name in ROWS and name != "pair":  # NumPy does it
                row = ROWS[name](bench)
                records += count_row(f"{row.title}, {row.cells:,} cells", row.contenders)
    print(operations_table(records))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "operations.json").write_text(json.dumps(records, indent=1))
    (args.out / "operations.md").write_text(operations_table(records))


def facts_of(machine: Machine, bench: Bench, repeats: int) -> dict[str, Any]:
    """What a reader must know of the run."""
    return {
        "device": machine.name,
        "repeats": repeats,
        "genes": bench.n_genes,
        "nonzero": bench.nonzero,
        "matrix_peak_flops": machine.flops,
        "copy_bytes_per_second": machine.bandwidth,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
