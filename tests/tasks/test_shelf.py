"""Static parts on disk: what one run has computed, the next one reads; other bytes are other pictures."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from vpt.data.module import ImageData
from vpt.tasks import store
from vpt.tasks.measure import measure
from vpt.tasks.shelf import Shelf
from vpt.tasks.store import fill
from vpt.tasks.tune import tune
from vpt.towers.backbone import Backbone

QUIET = {"progress": False, "device": "cpu", "precision": "float32", "batch_size": 9}


def test_tensors_come_back_by_key_and_a_torn_end_is_not_read(tmp_path: Path) -> None:
    x = torch.randn(5, 3, 2)
    shelf = Shelf(tmp_path, ("print", "0"))
    shelf.add(["a", "b", "c"], x[:3])
    with shelf.data.open("ab") as file:
        file.write(b"torn")  # a kill between the tensors and the index
    with shelf.index.open("a") as file:
        file.write('"d')  # or within the index
    again = Shelf(tmp_path, ("print", "0"))
    assert again.missing(["a", "d", "c", "e"]) == [1, 3]
    again.add(["d", "e"], x[3:])
    assert torch.equal(Shelf(tmp_path, ("print", "0")).read(["e", "a", "d"]), x[[4, 0, 3]])
    assert Shelf(tmp_path, ("other", "0")).missing(["a"]) == [0]
    assert not shelf.takes(torch.zeros(20_000))


def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures go through a tower while a static part is filled."""
    seen: list[int] = []
    advance = store.advance
    monkeypatch.setattr(
        store, "advance", lambda t, x, *a, **k: (seen.append(len(x)), advance(t, x, *a, **k))[1]
    )
    return seen


def test_a_filled_part_is_read_by_the_next_run(
    backbone: Backbone, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ImageData(str(pictures), augment="flip", views=2)
    data.bind(backbone.preprocessing)
    seen = count(monkeypatch)

    def stored(stage: str = "1") -> store.Stored:
        shelves = {s: Shelf(tmp_path, (s,)) for s in ("1", "pooled")}
        found = fill(
            backbone.image, stage, data.pictures("train", augmented=True), 2, pooled=True, shelves=shelves.get
        )
        assert found is not None
        return found

    plain = fill(backbone.image, "1", data.pictures("train", augmented=True), 2, pooled=True)
    assert plain is not None
    seen.clear()
    first, whole = stored(), sum(seen)
    seen.clear()
    second = stored()
    assert (whole, sum(seen)) == (72, 1)  # one picture tells the rest of the stream
    for found in (first, second):
        assert torch.equal(found.x, plain.x)
        assert torch.equal(found.frozen, plain.frozen)  # type: ignore[arg-type]
        assert found.facts == plain.facts
    data.seed = 2  # other views
    seen.clear()
    stored()
    assert sum(seen) == 72


def test_a_changed_picture_is_read_anew(
    backbone: Backbone, tmp_path: Path, paint: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = paint(tmp_path / "p", {"train": 3, "test": 2}, noise=40)  # type: ignore[operator]

    def features() -> torch.Tensor:
        data = ImageData(str(root), val=0)
        data.bind(backbone.preprocessing)
        found = fill(
            backbone.image, "pooled", data.pictures("test"), 1, shelves=lambda s: Shelf(tmp_path / "s", (s,))
        )
        assert found is not None
        return found.x[0]

    before = features()
    Image.new("RGB", (32, 32), (250, 250, 0)).save(root / "test" / "blue" / "0.png")
    after = features()
    changed = (before - after).abs().amax(1) > 1e-6
    assert changed.sum() == 1


@pytest.mark.parametrize("method", ["linear", "vpt-deep", "coop", "cocoop", "maple", "zero-shot", "bias"])
def test_measuring_from_the_shelf_changes_nothing(
    method: str, backbone: Backbone, tiny_clip: Backbone, pictures: Path, tmp_path: Path
) -> None:
    from vpt.methods import method_class

    backbone = tiny_clip if method_class(method).named else backbone
    options = {"epochs": 2, "shots": 4, **QUIET}
    plain = tune(backbone, str(pictures), method, **options)
    kept = [tune(backbone, str(pictures), method, cache=str(tmp_path), **options) for _ in range(2)]
    for tuned in kept:
        for a, b in zip(tuned.metrics, plain.metrics, strict=True):
            assert a == {**b, "value": pytest.approx(b["value"], abs=1e-5)}
    data = ImageData(str(pictures), batch_size=9)
    data.bind(backbone.preprocessing)
    a, b = (measure(plain, data, "test", cache=c) for c in (None, tmp_path))
    assert torch.allclose(a.scores, b.scores, atol=1e-5)
    assert a.keys == b.keys
