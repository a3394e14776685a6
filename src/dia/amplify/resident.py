"""Runs contrastive training, with Lightning or without leaving the device; `learn` chooses.

On the device lie images, dissolved copies, draws, loss and optimiser: a step waits for nothing, and where the
device allows it the whole step is one CUDA graph. That way takes one process and a finished bank of dissolved
copies; several processes, live dissolving and loggers go the way of Lightning. Knows no score and no label.
"""

from __future__ import annotations

import math
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.processes import bf16_is_fast, choose_device, processes
from ..core.running import stopping
from ..core.running.progress import Bar
from ..core.tracking import logging_curves
from ..core.training import not_finite, seed_step
from ..dissolve.bank import DissolvedBank
from .contrast import ContrastiveTraining, Dissolved
from .encoder import Encoder
from .inputs import as_input
from .optimise import make_optimizer, schedule
from .settings import AmplifySettings

CHECKPOINT = "resident.ckpt"
_EAGER = 3  # steps before a graph is captured: they choose kernels and make the optimiser's state
_LOOK = 200  # steps between looks at the loss, each of which waits for the device
_ROWS = 1024  # images resized at a time


class Resident(ContrastiveTraining):
    """Contrastive training with images and dissolved copies as uint8 tensors on the device.

    Args:
        images: `(N, H, W, C)` uint8.
        bank: their dissolved copies, or None (CSI).
        s: settings of the training.
        seed: decides the weights, batches and all draws.
        device: holds everything.
    """

    def __init__(
        self,
        images: np.ndarray,
        bank: DissolvedBank | None,
        s: AmplifySettings,
        seed: int,
        device: torch.device,
    ):
        super().__init__(images, bank, s, seed)
        self.to(device)
        self.x = _on(device, images, s)  # (N, C, S, S)
        if bank is not None:
            t, flips, m = bank.array.shape[:3]
            flat = _on(device, bank.array.reshape(-1, *bank.array.shape[3:]), s)
            self.copies = flat.view(t, flips, m, *flat.shape[1:])
            self.place = torch.from_numpy(np.searchsorted(bank.index, np.arange(len(images)))).to(device)

    def plain(self, index: Tensor) -> Tensor:
        """Returns the images `index`, `(b, C, S, S)` in [0, 1]."""
        return self.x[index].float() / 255

    def dissolved_copies(self, index: Tensor, flip: Tensor, level: Tensor) -> Tensor:
        """Returns dissolved copies, `(b, C, S, S)` in [0, 1].

        Args:
            index: `(b,)`, which images.
            flip: `(b,)` bool, where an image is mirrored first.
            level: `(b,)` int, the place of each image's t in the grid.
        """
        return self.copies[level, flip.long(), self.place[index]].float() / 255


def fits(images: np.ndarray, dissolved: Dissolved | None, settings: AmplifySettings, device: str) -> bool:
    """Returns whether training can stay on its device: one CUDA device that holds everything, and no logger.

    Live dissolving needs the U-Net at every step, and several processes need each other.

    Args:
        images: `(N, H, W, C)` uint8.
        dissolved: the source of dissolved copies; None for CSI.
        settings: of the training.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
    """
    where = choose_device(device)
    if where.type != "cuda" or processes()[1] > 1 or logging_curves():
        return False
    if dissolved is not None and not isinstance(dissolved, DissolvedBank):
        return False
    height, width = images.shape[1:3]
    pixels = (images.size + (0 if dissolved is None else dissolved.array.size)) / (height * width)
    return pixels * min(settings.size, max(height, width)) ** 2 < torch.cuda.mem_get_info(where)[0] / 2


def learn(
    images: np.ndarray,
    dissolved: Dissolved | None,
    settings: AmplifySettings,
    *,
    seed: int = 0,
    device: str = "auto",
    workdir: Path,
    resume: bool = False,
    progress: bool = False,
) -> tuple[Encoder, float]:
    """Trains an encoder on normal images, on the device where all fits there, else with Lightning.

    Args:
        images: `(N, H, W, C)` uint8, normal.
        dissolved: the source of dissolved copies; None trains CSI.
        settings: of the training.
        seed: decides the weights, batches and all draws.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workdir: a folder for checkpoints.
        resume: whether training goes on from the checkpoint found there.
        progress: whether a progress bar shows the time left.

    Returns:
        The encoder in eval mode, and the seconds training took, interrupted runs included.
    """
    start = time.perf_counter()
    if fits(images, dissolved, settings, device):
        assert dissolved is None or isinstance(dissolved, DissolvedBank)
        with torch.random.fork_rng():
            staying = Resident(images, dissolved, settings, seed, choose_device(device))
            loop = ResidentLoop(staying, workdir, resume=resume)
            loop.run(progress=progress)
        return staying.encoder.eval().requires_grad_(False), loop.seconds
    from ..core.running.loop import train

    module = ContrastiveTraining(images, dissolved, settings, seed)
    train(
        module, steps=settings.length(len(images)), workdir=workdir, resume=resume, device=device,
        precision=settings.precision, progress=progress,
    )  # fmt: skip
    return module.encoder.requires_grad_(False), module.seconds_before + time.perf_counter() - start


def training_rows(
    images: np.ndarray, dissolved: Dissolved | None, settings: AmplifySettings, *, seed: int = 0
) -> Tensor:
    """Returns the rows that the encoder sees in a first step on all images, in the order of `loss.py`.

    Args:
        images: `(B, H, W, C)` uint8.
        dissolved: the source of dissolved copies; None for CSI.
        settings: of the training.
        seed: decides the draws.

    Returns:
        `(views·K·B, C, S, S)` in [0, 1].
    """
    with torch.random.fork_rng():
        module = ContrastiveTraining(images, dissolved, settings, seed)
        seed_step(seed, 0)
        return module.augmented(np.arange(len(images)))


class ResidentLoop:
    """Runs a `Resident` for the steps of its settings; writes checkpoints by time and goes on from one.

    Args:
        module: the training.
        workdir: holds the checkpoint.
        resume: whether to go on from a checkpoint there.
        seconds: between checkpoints, with one more at the end of each run; infinite: none.

    Attributes:
        step: the steps done so far.
        steps: the steps in all.
        losses: `(steps,)` float32 on the device, NaN where a step is still to come.
        seconds: the time of training so far, earlier calls included.
    """

    def __init__(self, module: Resident, workdir: Path, *, resume: bool = True, seconds: float = 60):
        self.module, self.every, self.path = module, seconds, workdir / CHECKPOINT
        self.device, s, n = module.device, module.s, len(module.images)
        self.steps, self.step, self.seconds = s.length(n), 0, 0.0
        self.rate, self.lr = schedule(s, n), torch.tensor(s.lr, device=self.device)
        self.optimizer = make_optimizer(module.parameters(), s, self.lr)
        self.losses = torch.full((self.steps,), math.nan, device=self.device)
        self.index = torch.zeros(min(s.batch, n), dtype=torch.long, device=self.device)
        self.at = torch.zeros((), dtype=torch.long, device=self.device)
        self.low = s.precision == "bf16" or (s.precision == "auto" and bf16_is_fast(self.device))
        self.graph: Any = None
        # a Beta waits for the device, and a graph cannot follow the epoch
        self.captures, self.warm = self.device.type == "cuda" and s.t_sampler == "uniform", 0
        workdir.mkdir(parents=True, exist_ok=True)
        if resume and self.path.exists():
            self._load()

    def run(self, until: int | None = None, deadline: float = math.inf, progress: bool = False) -> int:
        """Trains up to a step, or until a time.

        Args:
            until: the step to reach; the last by default.
            deadline: a value of `time.perf_counter()` after which no step begins.
            progress: whether a bar shows the time left.

        Returns:
            The step reached.

        Raises:
            TrainingError: the loss was NaN or infinite; the last checkpoint is from before.
        """
        until, saved = self.steps if until is None else until, time.perf_counter()
        begin = saved - self.seconds  # of all runs together, had they followed one another
        self.module.train()
        bar = Bar("Training the encoder", until, "step", shown=progress)
        with bar, torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            while self.step < until and time.perf_counter() < deadline and not stopping.wanted():
                self._train_one()
                self.step += 1
                due = time.perf_counter() - saved > self.every
                if due or self.step % _LOOK == 0:
                    self._check_finite()
                    bar.update(self.step)
                if due:
                    saved = time.perf_counter()
                    self.seconds = saved - begin
                    self.save()
        self._check_finite()
        self.seconds = time.perf_counter() - begin
        if self.every < math.inf:
            self.save()
        stopping.check()
        return self.step

    def _train_one(self) -> None:
        self._prepare()
        if self.captures and self.graph is None and self.warm >= _EAGER:
            self._capture()
            self._prepare()
        if self.graph is not None:
            self.graph.replay()
        elif not self.captures:
            self._work()
        else:  # steps before a capture must not be on the default stream
            self.warm += 1
            stream, default = torch.cuda.Stream(), torch.cuda.current_stream()
            stream.wait_stream(default)
            with torch.cuda.stream(stream):
                self._work()
            default.wait_stream(stream)

    def _prepare(self) -> None:
        """Gives the step its batch, its rate and its seed, without waiting for the device."""
        m = self.module
        m.global_step = self.step
        index = torch.from_numpy(m.batch_at(self.step))
        if self.device.type == "cuda":
            index = index.pin_memory()
        self.index.copy_(index, non_blocking=True)
        self.lr.fill_(m.s.lr * self.rate(self.step))
        self.at.fill_(self.step)
        seed_step(m.seed, self.step)

    def _work(self) -> None:
        """Runs one step: forward, backward, optimiser. A graph captures all of it."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low, cache_enabled=False):
            loss = self.module.step_loss(self.index)
        loss.backward()
        self.optimizer.step()
        self.losses.scatter_(0, self.at[None], loss.detach().float()[None])

    def _capture(self) -> None:
        """Captures the step into a graph; where that fails, steps stay as they were."""
        torch.cuda.synchronize()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                self._work()
            self.graph = graph
        except RuntimeError as error:
            warnings.warn(f"no CUDA graph of the training step: {error}", stacklevel=2)
            self.captures = False
            # earlier versions of torch leave the stream of the capture current, and the generator as if in it
            torch.cuda.set_stream(stream)
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(torch.Generator(self.device).graphsafe_get_state())

    def _check_finite(self) -> None:
        """Raises `TrainingError` where a loss is not finite."""
        found = self.losses[: self.step].cpu()
        if bad := (~torch.isfinite(found)).nonzero().flatten().tolist():
            m = self.module
            raise not_finite(float(found[bad[0]]), bad[0], m.batch_at(bad[0]), len(m.images))

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        state = {"step": self.step, "seconds": self.seconds, "losses": self.losses}
        state |= {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        new = self.path.with_suffix(".tmp")
        torch.save(state, new)
        new.replace(self.path)

    def _load(self) -> None:
        state = torch.load(self.path, map_location=self.device, weights_only=True)
        if len(state["losses"]) != self.steps:
            return  # of another length of training
        self.step, self.seconds = state["step"], state["seconds"]
        self.losses.copy_(state["losses"])
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr


def _on(device: torch.device, images: np.ndarray, settings: AmplifySettings) -> Tensor:
    """Brings `(N, H, W, C)` uint8 to `(N, C, S, S)` uint8 of the encoder's size, on the device."""
    side = min(settings.size, max(images.shape[1:3]))
    there = torch.empty(len(images), images.shape[3], side, side, dtype=torch.uint8, device=device)
    for i in range(0, len(images), _ROWS):
        part = torch.from_numpy(np.ascontiguousarray(images[i : i + _ROWS])).permute(0, 3, 1, 2)
        there[i : i + _ROWS] = as_input(part, settings).mul(255).round().byte().to(device)
    return there
