"""Noise, targets and weights against diffusers' own schedulers, and what a step and a measurement ask for."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from vpt.methods.method import Seen
from vpt.objectives.denoise import HELD, Denoise, Schedule

X = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(3))
NOISE = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(4))
T = torch.tensor([0, 1, 300, 700, 999])


def schedule_of(predicts: str, **config: object) -> tuple[Schedule, DDPMScheduler]:
    theirs = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=predicts, **config)
    return Schedule(predicts, theirs.alphas_cumprod), theirs


@pytest.mark.parametrize("config", [{}, {"beta_start": 0.00085, "beta_end": 0.012}])
def test_noise_and_velocity_are_those_of_ddpm(config):
    ours, theirs = schedule_of("v_prediction", **config)
    assert torch.equal(ours.noisy(X, NOISE, T), theirs.add_noise(X, NOISE, T))
    assert torch.equal(ours.target(X, NOISE, T), theirs.get_velocity(X, NOISE, T))
    assert torch.equal(schedule_of("epsilon")[0].target(X, NOISE, T), NOISE)
    assert torch.equal(schedule_of("sample")[0].target(X, NOISE, T), X)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flows_are_those_of_the_euler_scheduler(shift):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    ours = Schedule("flow", shift=shift)
    t = theirs.timesteps[[0, 100, 500, 900, 999]]
    assert torch.allclose(ours.noisy(X, NOISE, t), theirs.scale_noise(X, t, NOISE), atol=1e-6)
    u = torch.linspace(1000, 1, 1000) / 1000
    assert torch.allclose(ours._shifted(u), theirs.timesteps, atol=1e-3)
    # the step of the library's own sampler along the true flow, from any noise to none, gives the picture
    theirs.set_timesteps(sigmas=[0.6], device="cpu")
    t = theirs.timesteps.expand(5)
    flow = ours.target(X, NOISE, t)
    found = theirs.step(flow, theirs.timesteps[0], ours.noisy(X, NOISE, t)).prev_sample
    assert torch.allclose(found, X, atol=1e-5)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
def test_weights_are_min_snr(predicts):
    """The published formulas on the library's own signal-to-noise ratio."""
    ours, theirs = schedule_of(predicts)
    snr = compute_snr(theirs, T)
    least = torch.minimum(snr, torch.full_like(snr, 5.0))
    want = {"epsilon": least / snr, "v_prediction": least / (snr + 1), "sample": least}[predicts]
    assert torch.allclose(ours.weights(T, 5.0), want, rtol=1e-4)
    assert torch.equal(ours.weights(T, 0.0), torch.ones(5))


def test_weights_where_nothing_of_the_picture_is_left():
    ours, _ = schedule_of("epsilon", rescale_betas_zero_snr=True)
    assert ours.weights(T, 5.0).isfinite().all()
    with pytest.raises(ValueError, match=r"min-SNR weighs noise schedules.*Set snr=0"):
        Schedule("flow").weights(T, 5.0)


def test_times_cover_the_schedule():
    ours, _ = schedule_of("epsilon")
    t = ours.times(4000, torch.device("cpu"))
    assert (t.min() < 10) & (t.max() > 989) & (t.max() < 1000)
    assert abs(float(t.float().mean()) - 499.5) < 25
    assert ours.spread(8, torch.device("cpu")).tolist() == [62, 187, 312, 437, 562, 687, 812, 937]
    flow = Schedule("flow", shift=3.0)
    u = flow.times(4000, torch.device("cpu")) / 1000
    logits = (u / (3 - 2 * u)).logit()  # the shift undone: normal, by Stable Diffusion 3's choice
    assert abs(float(logits.mean())) < 0.06
    assert abs(float(logits.std()) - 1) < 0.05


class Painter:
    """Knows the pictures, and so says what the network should, or ``wrong`` more."""

    def __init__(self, schedule: Schedule, wrong: float = 0.0) -> None:
        self.schedule, self.wrong, self.asked = schedule, wrong, []

    def latents(self, inputs, *, drawn=True):
        self.drawn = drawn
        return inputs

    def paint(self, noisy, t, captions):
        a, b = (p for p in self.schedule._parts(noisy, t))
        self.asked.append((noisy, t, list(captions)))
        return (noisy - a * self.x) / b + self.wrong

    def seen(self, latents, prediction):
        return Seen(latents, logits=prediction)


def objective(**options) -> tuple[Denoise, Painter]:
    schedule, _ = schedule_of("epsilon")
    said = [(f"{i} first", f"{i} second", f"{i} third") for i in range(5)]
    painter = Painter(schedule)
    painter.x = X
    return Denoise(schedule, said, said, **options), painter


BATCH = {"index": torch.arange(5)}


def test_a_step_is_the_error_of_the_prediction():
    task, painter = objective()
    seen, loss = task.step(painter, X, BATCH, 0)
    assert float(loss(seen.logits)) < 1e-6
    assert torch.isclose(loss(seen.logits + 0.5), torch.tensor(0.25), atol=1e-4)
    assert painter.drawn
    for epoch in (1, 2):
        task.step(painter, X, BATCH, epoch)
    words = ("first", "second", "third")
    for epoch, (_, _, said) in enumerate(painter.asked):
        assert said == [f"{i} {words[(i + epoch) % 3]}" for i in range(5)]


def test_class_pictures_weigh_by_the_prior():
    task, painter = objective(prior=0.25, beside=frozenset({3, 4}))
    seen, loss = task.step(painter, X, BATCH, 0)
    error = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    found = loss(seen.logits + error.view(5, 1, 1, 1))
    assert torch.isclose(found, torch.tensor((1 + 4 + 9 + 0.25 * (16 + 25)) / 5), atol=1e-3)


def test_min_snr_weighs_each_picture_by_its_time():
    task, painter = objective(snr=5.0)
    seen, loss = task.step(painter, X, BATCH, 0)
    want = task.schedule.weights(painter.asked[0][1], 5.0).mean()
    assert torch.isclose(loss(seen.logits + 1.0), want, atol=1e-4)


def test_held_out_noise_depends_on_the_picture_alone():
    """Not on the batch it comes in, nor on what was drawn before; and it is the same for every time."""
    task, painter = objective()
    painter.wrong = 0.5
    metric = task.metric()
    task.observe(metric, painter, X, BATCH)
    assert float(task.result(metric, painter)["loss"]) == pytest.approx(0.25, abs=1e-4)
    assert not painter.drawn
    whole = painter.asked
    assert len(whole) == HELD
    assert len({float(t[0]) for _, t, _ in whole}) == HELD
    torch.manual_seed(99)
    painter.asked, painter.x = [], X[[4, 1]]
    task.observe(metric, painter, X[[4, 1]], {"index": torch.tensor([4, 1])})
    for (noisy, t, said), (a, b, c) in zip(painter.asked, whole, strict=True):
        assert torch.equal(noisy, a[[4, 1]])
        assert torch.equal(t, b[[4, 1]])
        assert said == [c[4], c[1]]
    other, painter = objective(seed=2)
    other.observe(metric, painter, X, BATCH)
    assert not torch.equal(painter.asked[0][0], whole[0][0])
