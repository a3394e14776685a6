"""The parts that benchmarks share: timing in turns, subprocesses with their peak memory, table and JSON.

A ratio is the median over rounds of the ratio within one round, in which every piece of work ran once, so
that other load of the machine falls on both sides alike. Seconds are medians too, and say little elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dia.core.environment import environment, peak_memory_mb

HERE = Path(__file__).parent
RESULTS = HERE / "results"


class Rounds:
    """Seconds of each piece of work in each round."""

    def __init__(self, seconds: Mapping[str, list[float]]):
        self.all = dict(seconds)

    def seconds(self, name: str) -> float:
        """Median over the rounds."""
        return median(self.all[name])

    def ratio(self, name: str, by: str) -> float:
        """Median over the rounds of seconds of `name` / seconds of `by`."""
        return median(a / b for a, b in zip(self.all[name], self.all[by], strict=True))


def rounds(work: Mapping[str, Callable[[], object]], *, repeats: int = 7, warmup: int = 1) -> Rounds:
    """Runs all pieces of work in turn, `warmup` rounds unmeasured, then `repeats` rounds measured.

    Every second round runs them in the opposite order.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for i in range(warmup + repeats):
        for name in list(work)[:: 1 if i % 2 else -1]:
            synchronise()
            start = time.perf_counter()
            work[name]()
            synchronise()
            if i >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return Rounds(seconds)


def synchronise() -> None:
    """Waits for the accelerator, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def apart(module: str, *arguments: object, python: str = sys.executable) -> dict[str, Any]:
    """Runs a module in a process of its own; its last line of output is a JSON object."""
    done = subprocess.run(
        [python, "-m", module, *map(str, arguments)], cwd=HERE.parent,
        stdout=subprocess.PIPE, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(map(str, arguments))}: exit status {done.returncode}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def answer(facts: Mapping[str, Any]) -> None:
    """The other end of `apart`: prints the facts with this process's peak memory."""
    print(json.dumps({**facts, "peak_memory_mb": round(peak_memory_mb(), 1)}))


def publish(name: str, rows: Sequence[Mapping[str, Any]], ratios: Mapping[str, float], **facts: Any) -> None:
    """Prints the rows and ratios and writes them to `results/NAME.json`.

    Args:
        name: of the benchmark.
        rows: one line of the table each, all with the same keys.
        ratios: what `make bench-quick` guards; higher is better.
        facts: whatever else belongs in the JSON.
    """
    console = Console(width=150)
    table = Table(*rows[0], title=name)
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)
    for key, value in ratios.items():
        console.print(f"{key}: {value:.3f}", highlight=False)
    made = {"benchmark": name, "ratios": dict(ratios), "rows": list(rows), **facts}
    made |= {"threads": torch.get_num_threads(), "environment": environment()}
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(made, indent=1) + "\n")


def parser(text: str | None) -> argparse.ArgumentParser:
    """A parser with the first line of a script's docstring."""
    return argparse.ArgumentParser(description=(text or "").splitlines()[0])
