"""The plain way against loops by hand, and the report of `vpt bench vit` on a network of a few kilobytes."""

import json
from pathlib import Path

import pytest
import torch
from timm.models.eva import Eva

import vpt.bench.vit as bench
from vpt.encode import encode
from vpt.prompt import Site
from vpt.tower import Tower
from vpt.towers.backbone import Backbone
from vpt.towers.vit import open_timm, tiny

ROW = {"work", "variant", "precision", "ms_median", "ms_min", "peak_mb", "times_plain", "times_floor"}


@pytest.fixture
def small(monkeypatch):
    """Stands in for timm's networks, which are too large for a test."""

    def load(name, **options):
        return Backbone(name, {"image": tiny()}, {"input_size": (3, 32, 32)}, "timm")

    monkeypatch.setattr(bench, "load", load)


def by_hand(m, images, table):
    """VPT-deep as a loop over timm's blocks."""
    x, n = m.norm_pre(m._pos_embed(m.patch_embed(images))), table.shape[1]
    x = torch.cat([x[:, :1], table[0].expand(len(x), -1, -1), x[:, 1:]], 1)
    for i, block in enumerate(m.blocks):
        if i:
            x = torch.cat([x[:, :1], table[i].expand(len(x), -1, -1), x[:, 1 + n :]], 1)
        x = block(x)
    return m.forward_head(m.norm(x), pre_logits=True)


def test_the_plain_way_is_the_loop_by_hand():
    tower, images, table = tiny(), torch.randn(2, 3, 32, 32), torch.randn(3, 4, 32)
    rows = {str(i): r for i, r in enumerate(table)}
    assert torch.equal(bench.plain_way(tower, images, rows), by_hand(tower.model, images, table))


def eva() -> Tower:
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0}
    return open_timm(Eva(**options, use_rot_pos_emb=True))


@pytest.mark.parametrize(
    "tower", [tiny(), tiny(global_pool="avg", reg_tokens=2), eva()], ids=["token", "avg", "eva"]
)
@pytest.mark.parametrize("low", [0, 2])
def test_ours_agrees_with_the_plain_way(tower, low):
    images = torch.randn(2, 3, 32, 32)
    table = torch.randn(3 - low, 4, 32, requires_grad=True)
    rows = {str(low + i): r for i, r in enumerate(table)}
    features = [bench.plain_way(tower, images, rows)]
    features.append(encode(tower, images, {Site("image", k, "prefix"): r for k, r in rows.items()}))
    grads = [torch.autograd.grad(f[:, :9].square().sum(), table, retain_graph=True)[0] for f in features]
    for plain, ours in (features, grads):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small")
def test_the_report_holds_every_work_and_its_ratios(tmp_path, capsys):
    file = tmp_path / "bench.json"
    found = bench.bench_vit(
        batch=2,
        rows=(2, 3),
        precisions=("float32", "bfloat16"),
        repeats=2,
        threads=1,
        clock="cpu",
        json=str(file),
    )
    assert json.loads(file.read_text()) == json.loads(json.dumps(found))
    machine, rows = found["machine"], found["rows"]
    assert machine["threads"] == 1
    assert machine["clock"] == "cpu"
    assert all(0 <= v < 1e-5 for v in machine["ours_against_plain_way"].values())
    assert all(row.keys() == ROW for row in rows)
    both = {(row["work"], row["variant"]) for row in rows if row["precision"] == "float32"}
    each = {f"{way}, {n} rows" for way in ("ours", "plain way") for n in (2, 3)}
    ours = {v for v in each if v.startswith("ours")}
    want = {
        ("forward", "frozen, plain"),
        ("linear probe", "encode each step"),
        ("linear probe", "features stored"),
    }
    want |= {("vpt-deep", v) for v in each | {"floor"}} | {("inference", v) for v in each}
    want |= {(w, v) for w in ("vpt-last-third", "vpt-last-third-stored") for v in ours | {"floor"}}
    assert both == want
    extra = {("vpt-deep", "2 rows, weights not cast"), ("vpt-deep", "2 rows, default attention")}
    assert {(row["work"], row["variant"]) for row in rows if row["precision"] == "bfloat16"} == want | extra
    for row in rows:
        assert row["ms_median"] >= row["ms_min"] > 0
        if row["variant"] in ("floor", "frozen, plain"):
            assert row["times_floor"] == 1
        if row["work"] == "forward":
            assert row["times_plain"] == 1
    peaks = {(row["work"], row["variant"], row["precision"]): row["peak_mb"] for row in rows}
    for n in (2, 3):
        assert (
            peaks["vpt-deep", f"ours, {n} rows", "float32"]
            < peaks["vpt-deep", f"plain way, {n} rows", "float32"]
        )
    assert peaks["vpt-last-third", "ours, 2 rows", "float32"] < peaks["vpt-deep", "ours, 2 rows", "float32"]
    said = capsys.readouterr().out
    assert "VPT-deep step, 3 rows: bfloat16" in said


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("pays", [True, False])
def test_bfloat16_is_timed_unasked_only_where_it_pays(monkeypatch, capsys, pays):
    monkeypatch.setattr(bench, "bf16_supported", lambda device: (pays, "the reason"))
    found = bench.bench_vit(batch=1, rows=(1,), repeats=1)
    assert {row["precision"] for row in found["rows"]} == ({"float32", "bfloat16"} if pays else {"float32"})
    assert ("the reason" in capsys.readouterr().out) is not pays


@pytest.mark.usefixtures("small")
def test_results_that_differ_are_not_timed(monkeypatch, tmp_path):
    monkeypatch.setattr(
        bench,
        "plain_way",
        lambda tower, images, rows: encode(tower, images) + sum(r.sum() for r in rows.values()),
    )
    monkeypatch.setattr(bench, "in_turns", lambda *_: pytest.fail("timed all the same"))
    with pytest.raises(RuntimeError, match="differ by"):
        bench.bench_vit(
            batch=1, rows=(1,), repeats=1, precisions=("float32",), json=str(tmp_path / "no.json")
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rows": (0, 3)}, "rows=\\[0, 3\\]"),
        ({"rows": (3, 3)}, "each once"),
        ({"repeats": 0}, "repeats=0"),
        ({"batch": 0}, "batch=0"),
        ({"precisions": ("float16",)}, "float16"),
        ({"clock": "cpu"}, "threads=1"),
        ({"device": "tpu"}, "no device"),
        ({"json": str(Path(__file__).parent)}, "is a folder"),
    ],
)
@pytest.mark.usefixtures("small")
def test_options_that_cannot_be_are_refused_before_anything_runs(monkeypatch, options, said):
    monkeypatch.setattr(bench, "in_turns", lambda *_: pytest.fail("measured all the same"))
    with pytest.raises(ValueError, match=said):
        bench.bench_vit(**options)


def test_a_closed_tower_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="takes no rows"):
        bench.bench_vit(model="test_resnet")
