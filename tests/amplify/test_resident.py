"""The training that stays on its device against the plain one: the same rows, losses and weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dia.amplify import resident
from dia.amplify.augment import AugmentSettings
from dia.amplify.contrast import AmplifySettings, ContrastiveTraining
from dia.amplify.optimise import make_optimizer, schedule
from dia.amplify.resident import Resident, ResidentLoop, learn
from dia.core.errors import TrainingError
from dia.core.tracking import tracking
from dia.core.training import seed_step
from dia.detectors.dia import DIA, DIASettings
from dia.dissolve import Control, DissolverSettings
from dia.dissolve.bank import DissolvedBank

CPU = torch.device("cpu")
TINY = AmplifySettings(size=16, width=4, steps=10, batch=6, precision="32")
WITH = {
    "dia": {},
    "adamw, cutperm": {"shift": "cutperm"},
    "simsiam, naive": {"simsiam_weight": 1.0, "exclude_own": False},
    "cycled": {"t_sampler": "cycled", "t_per": "image"},
    "epochs": {"steps": None, "epochs": 2},
    "lars": {"optimizer": "lars", "lr": 0.5, "augment": AugmentSettings(crop=(0.5, 1.0))},
}


@pytest.fixture
def losses(monkeypatch):
    """The loss of each step of the plain training."""
    found, real = [], ContrastiveTraining.training_step

    def training_step(self, *args):
        loss = real(self, *args)
        found.append(float(loss))
        return loss

    monkeypatch.setattr(ContrastiveTraining, "training_step", training_step)
    return found


@pytest.fixture
def bank(make_images, tmp_path):
    x = make_images(20)
    blur = Control(DissolverSettings(kind="gaussian", size=16))
    return x, DissolvedBank.build(x, blur, (30, 60, 90), tmp_path / "bank.npy")


def loop_of(x, bank, s, workdir, **how):
    return ResidentLoop(Resident(x, bank, s, 3, CPU), workdir, **how)


@pytest.mark.parametrize("name", WITH)
def test_it_has_the_loss_curve_and_the_weights_of_the_plain_training(name, bank, losses, tmp_path):
    x, copies = bank
    s = replace(TINY, **WITH[name])
    if s.optimizer == "lars":
        pytest.importorskip("timm")
    encoder, _ = learn(x, copies, s, seed=3, device="cpu", workdir=tmp_path / "plain")
    loop = loop_of(x, copies, s, tmp_path / "resident")
    assert loop.run() == s.length(len(x)) == len(losses)
    np.testing.assert_allclose(loop.losses.numpy(), losses, rtol=1e-3)
    for a, b in zip(loop.module.encoder.parameters(), encoder.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_without_a_bank_it_is_csi(bank, losses, tmp_path):
    x, _ = bank
    learn(x, None, TINY, seed=3, device="cpu", workdir=tmp_path / "plain")
    loop = loop_of(x, None, TINY, tmp_path / "resident")
    loop.run()
    np.testing.assert_allclose(loop.losses.numpy(), losses, rtol=1e-3)


def test_rows_are_those_of_the_plain_training_but_for_rounding(make_images, tmp_path):
    x = make_images(12, 24, 20)  # resized to 16, which rounds once more
    copies = DissolvedBank.build(
        x,
        Control(DissolverSettings(kind="gaussian", size=16)),
        (30, 60),
        tmp_path / "b.npy",
        np.arange(3, 12),
    )
    index = np.array([7, 3, 11])
    rows = []
    for module in (ContrastiveTraining(x, copies, TINY, 0), Resident(x, copies, TINY, 0, CPU)):
        seed_step(0, 4)
        rows.append(module.views(index if not rows else torch.from_numpy(index)))
    torch.testing.assert_close(*rows, rtol=0, atol=0.51 / 255)


def test_stopped_anywhere_and_resumed_it_ends_the_same(bank, tmp_path):
    x, copies = bank
    whole = loop_of(x, copies, TINY, tmp_path / "whole")
    whole.run()
    for stop in (1, 4, 9):
        work = tmp_path / str(stop)
        assert loop_of(x, copies, TINY, work).run(until=stop) == stop
        again = loop_of(x, copies, TINY, work)
        assert again.step == stop
        again.run()
        assert torch.equal(again.losses, whole.losses)
        for name, value in whole.module.state_dict().items():
            assert torch.equal(again.module.state_dict()[name], value), name
    anew = loop_of(x, copies, TINY, tmp_path / "4", resume=False)
    assert anew.step == 0


def test_a_deadline_that_has_passed_trains_nothing_and_keeps_what_there_is(bank, tmp_path):
    x, copies = bank
    loop = loop_of(x, copies, TINY, tmp_path)
    assert loop.run(until=3) == 3
    assert loop.run(deadline=0.0) == 3
    assert loop_of(x, copies, TINY, tmp_path).step == 3


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_checkpoint(bank, tmp_path):
    x, copies = bank
    loop = loop_of(x, copies, TINY, tmp_path)
    loop.run(until=2)
    real = loop.module.step_loss
    loop.module.step_loss = lambda index: real(index) * (float("nan") if loop.step == 5 else 1)
    with pytest.raises(TrainingError, match="at step 5"):
        loop.run()
    assert loop_of(x, copies, TINY, tmp_path).step == 2


def test_a_fit_on_such_a_device_scores_as_the_plain_one(make_images, monkeypatch):
    x = make_images(40)
    s = DIASettings(DissolverSettings(kind="gaussian", size=16), TINY, ts=(30, 60), samples=1)
    plain = DIA(s, seed=3, device="cpu").fit(x)
    monkeypatch.setattr(resident, "fits", lambda *_: True)
    staying = DIA(s, seed=3, device="cpu").fit(x)
    np.testing.assert_allclose(staying.score(x), plain.score(x), rtol=0.05)
    assert staying.fit_seconds_ > 0


def test_it_is_for_one_cuda_device_and_a_bank(bank, monkeypatch):
    x, copies = bank
    assert not resident.fits(x, copies, TINY, "cpu")
    monkeypatch.setattr(resident, "choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**6, 10**9))
    assert resident.fits(x, copies, TINY, "cuda")
    assert resident.fits(x, None, TINY, "cuda")
    assert not resident.fits(x, object(), TINY, "cuda")  # live
    with tracking("csv", "logs"):
        assert not resident.fits(x, None, TINY, "cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (x.nbytes, 10**9))
    assert not resident.fits(x, None, TINY, "cuda")


def test_the_rate_by_hand():
    rate = schedule(replace(TINY, steps=40, warmup=0.25), 20)
    expected = {0: 0.1, 5: 0.55, 10: 1.0, 25: 0.5, 39: (1 + np.cos(np.pi * 29 / 30)) / 2}
    assert [rate(step) for step in expected] == pytest.approx(list(expected.values()))


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_a_rate_in_a_tensor_steps_as_a_number(optimizer):
    if optimizer == "lars":
        pytest.importorskip("timm")
    s = replace(TINY, optimizer=optimizer)
    ends = []
    for lr in (0.1, torch.tensor(0.1)):
        p = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
        o = make_optimizer([p], s, lr)
        for i in range(3):
            p.grad = torch.tensor([[0.1, 0.2], [-0.3, 0.4]]) * (i + 1)
            o.step()
        ends.append(p.detach())
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_a_step_never_asks_the_device_for_a_number(optimizer, bank, tmp_path):
    # on a GPU each such question waits for all work before it, and none may be asked within a graph
    if optimizer == "lars":
        pytest.importorskip("timm")
    x, copies = bank
    loop = loop_of(x, copies, replace(TINY, optimizer=optimizer), tmp_path)
    loop.run(until=3)  # the optimiser's state is made
    asked = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            asked.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    loop._prepare()
    with Watch():
        loop._work()
    assert "rand" in asked
    assert not {"_local_scalar_dense", "nonzero", "item", "is_nonzero"} & set(asked)
