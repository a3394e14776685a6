"""The device a process works on, and the processes that `torchrun` starts: joining, sharing, gathering.

Knows torch; knows no model and no data.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from .errors import DataError, TrainingError


def choose_device(device: str = "auto") -> torch.device:
    """Resolves `auto`: the CUDA device of this process if there is one, otherwise the CPU.

    Raises:
        DataError: there is no such device.
    """
    if device == "auto":
        own = int(os.environ.get("LOCAL_RANK", 0)) if processes()[1] > 1 else 0
        return torch.device("cuda", own) if torch.cuda.is_available() else torch.device("cpu")
    known = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if known is None:
        raise DataError(f"device {device} is not known; there are auto, cpu, cuda and cuda:N")
    if device != "cpu" and int(known[1] or 0) >= (count := torch.cuda.device_count()):
        there = f"there are {count} CUDA devices, from cuda:0" if count else "there is no CUDA device here"
        raise DataError(f"device {device}: {there}; take auto or cpu")
    return torch.device(device)


def bf16_is_fast(device: torch.device) -> bool:
    """Returns whether the device multiplies bfloat16 in hardware: CUDA since Ampere, AVX512-BF16 or AMX.

    A CPU that `ATEN_CPU_CAPABILITY` makes torch treat as an older one counts as an older one.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    older = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    return device.type == "cpu" and not older and torch.cpu._is_avx512_bf16_supported()  # no public name


def join_processes() -> None:
    """Joins the other processes, where `torchrun` started this one; does nothing otherwise."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def end_process(status: int) -> NoReturn:
    """Waits for all processes and ends this one at once, where `torchrun` started it.

    The threads of gloo may end the interpreter with SIGABRT while it tears itself down.

    Args:
        status: the exit status; others are not waited for where it is not 0.
    """
    if not status:
        barrier()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def processes() -> tuple[int, int]:
    """Returns (rank of this process, number of processes)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def is_main() -> bool:
    """Returns whether this process is the one that writes files."""
    return processes()[0] == 0


def barrier() -> None:
    """Waits for all processes."""
    if processes()[1] > 1:
        dist.barrier()


def of_all(value: Any) -> list[Any]:
    """Gathers the values of all processes, in each of them."""
    values = [value] * processes()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def gather(x: torch.Tensor) -> torch.Tensor:
    """Stacks the tensors of all W processes, `(W, *x.shape)`; gradients flow back to each, added up."""
    from torch.distributed.nn.functional import all_gather

    return torch.stack(all_gather(x))


def share(n: int) -> slice:
    """Returns this process's part of a batch of n.

    Raises:
        TrainingError: the batch cannot be shared equally.
    """
    rank, size = processes()
    if n % size:
        raise TrainingError(
            f"a batch of {n} cannot be shared by {size} processes; choose a multiple of {size}"
        )
    return slice(rank * (n // size), (rank + 1) * (n // size))
