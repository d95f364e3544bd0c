"""What a checkpoint and a file keep of a method on towers, and which parameters decay."""

from __future__ import annotations

import torch
from torch import nn

from vpt.methods.method import Method
from vpt.prompt import Context, Prompt
from vpt.tasks.learning import Learning


class Rows(Method):
    def __init__(self) -> None:
        super().__init__()
        self.prompt = Prompt("image", "prefix", ["0"], 2, 8, through=nn.Linear(8, 8))
        self.register_buffer("count", torch.zeros(1))

    def forward(self, context: Context) -> dict:
        return self.prompt(context)


class Small(Learning):
    def __init__(self, tower) -> None:
        super().__init__()
        self.method, self.head = Rows(), nn.Linear(8, 3)
        self.network = nn.ModuleDict({"image": nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))})
        self.network["image"][0].weight.requires_grad_(False)
        self.towers = self.frozen = (tower, None)


def test_a_checkpoint_keeps_what_learns_and_the_methods_state(tower):
    learner = Small(tower)
    assert set(learner.learned()) == {
        "method.prompt.table.rows",
        "method.prompt.through.weight",
        "method.prompt.through.bias",
        "method.count",
        "head.weight",
        "head.bias",
        "network.image.0.bias",
    }
    assert learner.learns() == "rows 88, head 27, network 8"


def test_decay_spares_the_heads_bias_and_a_networks_vectors(tower):
    learner = Small(tower)
    names = {id(p): name for name, p in learner.named_parameters()}
    found = {names[id(p)]: g for g in learner.groups(1.0, 3.0, 0.1) for p in g["params"]}
    assert {n: (g["lr"], g["weight_decay"]) for n, g in found.items()} == {
        "method.prompt.table.rows": (1.0, 0.1),
        "method.prompt.through.weight": (1.0, 0.1),
        "method.prompt.through.bias": (1.0, 0.1),
        "head.weight": (3.0, 0.1),
        "head.bias": (3.0, 0.0),
        "network.image.0.bias": (1.0, 0.0),
    }


def test_the_file_holds_folded_rows_the_head_and_the_weights_that_learned(tower):
    learner = Small(tower).train()
    assert learner.method.training
    assert not learner.network.training
    made = learner.export({"kind": "baseline"})
    assert learner.method.training
    (rows,) = made.rows.values()
    assert torch.equal(rows, learner.method.prompt.through(learner.method.prompt.table.rows)[0])
    assert made.method == {}
    assert made.weights.keys() == {"0.bias"}
    assert torch.equal(made.head["weight"], learner.head.weight)
    learner.method.whole = True
    made = learner.export({})
    assert made.rows == {}
    assert made.method.keys() == learner.method.state_dict().keys()


def test_sites_are_asked_without_touching_the_runs_random_numbers(tower):
    learner = Small(tower).train()
    learner.method.prompt.dropout.p = 0.5
    torch.manual_seed(3)
    want = torch.rand(4)
    torch.manual_seed(3)
    assert {str(site) for site in learner.sites} == {"image/0/prefix"}
    assert torch.equal(torch.rand(4), want)
    assert learner.low == "0"
