"""Several processes: two gloo ranks compute the gradients, weights and bank of one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.numpy import load_file

from dia.amplify.augment import AugmentSettings
from dia.amplify.contrast import AmplifySettings, ContrastiveTraining
from dia.cli.main import main
from dia.core import processes
from dia.core.processes import share
from dia.core.training import TrainingError, seed_step
from dia.data.phantoms import load

STRENGTH = AugmentSettings(jitter=(0.2, 0.2, 0.2, 0))
SETTINGS = AmplifySettings(size=24, width=8, stem="patch", batch=6, precision="32", augment=STRENGTH)


class Copies:
    """Stands for a bank: the images darkened by t."""

    ts = (30, 60, 90)

    def __init__(self, images):
        self.images = images

    def take(self, index, flip, level):
        x = np.where(flip[:, None, None, None], self.images[index][:, :, ::-1], self.images[index])
        return (x // (2 + level[:, None, None, None])).astype(np.uint8)


def gradients(colour, dissolved):
    """All gradients of one batch's loss, from this process's share of it."""
    images = load("train", size=24, n=12, colour=colour).images
    module = ContrastiveTraining(images, Copies(images) if dissolved else None, SETTINGS, 0)
    module.encoder.eval()  # statistics of a batch are each process's own on the CPU
    seed_step(0, 5)
    _, z, logits = module.encoder(module.augmented(np.array([7, 1, 4, 10, 2, 5])))
    loss = module.loss(z, logits)
    loss.backward()
    return {name: p.grad for name, p in module.encoder.named_parameters()}


CASES = ((False, True), (True, False))  # colour, dissolved


def rank_main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    made = [gradients(*case) for case in CASES]
    for grads in made:
        for grad in grads.values():  # what DDP does with them
            dist.all_reduce(grad)
            grad /= 2
    if rank == 0:
        torch.save(made, f"{folder}/grads.pt")
    processes.end_process(0)


def test_two_ranks_have_the_gradients_of_one_process_with_the_whole_batch(tmp_path):
    mp.spawn(rank_main, (str(tmp_path),), nprocs=2)
    for shared, case in zip(torch.load(tmp_path / "grads.pt"), CASES, strict=True):
        alone = gradients(*case)
        largest = max(float(g.abs().max()) for g in alone.values())
        assert largest > 1e-3
        for name, grad in alone.items():
            torch.testing.assert_close(shared[name], grad, atol=1e-5 * largest, rtol=1e-4, msg=name)


def test_shares_are_disjoint_and_cover_the_batch(monkeypatch):
    parts = []
    for rank in range(4):
        monkeypatch.setattr(processes, "processes", lambda rank=rank: (rank, 4))
        parts.append(np.arange(12)[share(12)])
    assert np.concatenate(parts).tolist() == list(range(12))
    with pytest.raises(TrainingError, match="multiple of 4"):
        share(10)


OPTIONS = {
    "dissolver": {"steps": 6, "widths": "[8,8]", "precision": 32},
    "amplify": {"steps": 4, "width": 8, "precision": 32},
}
FIT = [f"--settings.{part}.{name}={value}" for part, s in OPTIONS.items() for name, value in s.items()]
FIT += ["--settings.samples=1", "--method=dia", "--seed=3", "--json"]


def test_dia_fit_under_torchrun_makes_one_model_like_that_of_one_process(tmp_path, capsys):
    images = load("train", size=24, n=48).images
    np.savez(tmp_path / "x.npz", train_images=images)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    data, scripts = str(tmp_path / "x.npz"), Path(sys.executable).parent
    command = [
        str(scripts / "torchrun"), "--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--master_port",
        str(port), str(scripts / "dia"), "fit", data, "--out", str(tmp_path / "shared"), *FIT,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("{"))  # one process speaks
    shared = json.loads(line)
    main(["fit", data, "--out", str(tmp_path / "alone"), *FIT, "--device", "cpu"])
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shared["n_train"] == alone["n_train"]
    a, b = (
        load_file(tmp_path / run / "dissolver" / "unet" / "diffusion_pytorch_model.safetensors")
        for run in ("shared", "alone")
    )
    for name, value in b.items():
        np.testing.assert_allclose(a[name], value, atol=2e-4, err_msg=name)
    assert not list(tmp_path.glob(".*work"))
