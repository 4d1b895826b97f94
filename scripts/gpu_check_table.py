"""The table of scripts/gpu_check.sh, from what its parts left in a folder."""

import json
import sys
from pathlib import Path
from typing import Any


def last_rate(log: Path) -> str:
    """Cells a second in the last line of a training's log that has them."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    rates = [line["cells_per_second"] for line in lines if "cells_per_second" in line]
    return f"{rates[-1]:,.0f} cells/s" if rates else "no numbers"


def shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def contenders(folder: Path) -> list[str]:
    """Lines for the contenders of every benchmark row that ended."""
    lines = ["", "| row | contender | cells/s | ours is faster by | card busy | of matrix peak | peak MB |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for file in sorted(folder.glob("rows/*/benchmark.json")):
        records: list[dict[str, Any]] = json.loads(file.read_text())["records"]
        peaks = {(r["row"].removeprefix("memory: "), r["contender"]): r["peak_mb"] for r in records if "peak_mb" in r}
        for r in (r for r in records if "seconds" in r):
            cells = [r["row"], r["contender"], f"{r['cells_per_second']:,.0f}", shown(r["ours_is_faster_by"], ".1f")]
            cells += [shown(r["device_busy"], ".0%"), f"{r['share_of_matrix_peak']:.0%}"]
            cells.append(shown(peaks.get((r["row"], r["contender"])), ",.0f"))
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(folder: Path) -> None:
    """Print versions, how every part ended, and its numbers."""
    print((folder / "versions.log").read_text())
    print("| part | how it ended | seconds |\n| --- | --- | --- |")
    for line in (folder / "parts.tsv").read_text().splitlines():
        print(f"| {' | '.join(line.split(chr(9)))} |")
    print("\n".join(contenders(folder)))
    operations = folder / "rows" / "operations" / "operations.md"
    print("\n" + operations.read_text() if operations.is_file() else "\nno operations were counted")
    for preset in ("base", "paper"):
        for stage in ("tokenizer", "prior"):
            print(f"preset {preset}, {stage}: {last_rate(folder / preset / stage / 'log.jsonl')}")
    real = folder / "real_run.log"
    if real.is_file():
        print("\nreal cells, the last lines:\n" + "\n".join(real.read_text().splitlines()[-40:]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
