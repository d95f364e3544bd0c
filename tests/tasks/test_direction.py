"""Steps on the sphere against DTI's formulas written out."""

from __future__ import annotations

import math

import torch

from vpt.tasks.direction import KAPPA, Direction


def test_a_step_is_the_published_one():
    u = torch.nn.Parameter(torch.nn.functional.normalize(torch.randn(2, 3, 8), dim=-1))
    start, target = u.detach().clone(), torch.randn(2, 3, 8)
    optimizer = Direction([u], lr=0.05)
    want = start.clone()
    for _ in range(4):
        optimizer.zero_grad()
        (u * target).sum().backward()
        optimizer.step()
        for i in range(2):
            for j in range(3):
                v = want[i, j]
                g = target[i, j] - KAPPA * start[i, j]
                g = g - (g @ v) * v
                g = g / g.square().sum().sqrt()
                v = v - 0.05 * g
                want[i, j] = v / v.square().sum().sqrt()
    assert torch.allclose(u, want, atol=1e-6)
    assert torch.allclose(u.norm(dim=-1), torch.ones(2, 3), atol=1e-6)


def test_every_step_turns_by_the_rate_whatever_the_gradient():
    for scale in (1e-6, 1.0, 1e6):
        u = torch.nn.Parameter(torch.nn.functional.normalize(torch.randn(8), dim=-1))
        before = u.detach().clone()
        optimizer = Direction([u], lr=0.1)
        (scale * u @ torch.randn(8)).backward()
        optimizer.step()
        assert math.isclose(float((u.detach() @ before).acos()), math.atan(0.1), rel_tol=0.02)


def test_the_start_is_part_of_the_state():
    """A resumed run is pulled to where training began, not to where it was cut."""
    u = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
    optimizer = Direction([u], lr=0.5)
    u.grad = torch.tensor([0.0, 1.0])
    optimizer.step()
    again = Direction([torch.nn.Parameter(u.detach().clone())], lr=0.5)
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(next(iter(again.state.values()))["start"], torch.tensor([1.0, 0.0]))


def test_what_has_no_gradient_stays():
    u = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = Direction([u])
    assert optimizer.step(lambda: torch.tensor(2.0)) == 2.0
    assert u.tolist() == [3.0, 4.0]
