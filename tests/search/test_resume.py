"""What a killed build left is gone on with, or forgotten whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vpt.data.item import Item
from vpt.prompt import Site
from vpt.promptset import PromptSet
from vpt.search.encoder import Encoder
from vpt.search.manifest import Manifest, shards_of
from vpt.search.resume import BEGUN, claim, clear, resumed
from vpt.search.shards import whole, write_shard
from vpt.towers.backbone import Backbone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Shards 0, 1, 3 and 5, as workers that run side by side leave them."""
    shards_of(tmp_path).mkdir()
    for n in (0, 1, 3, 5):
        write_shard(shards_of(tmp_path), n, [Item(str(n), 0)], np.eye(16)[:1])
    return tmp_path


def there(folder: Path) -> list[int]:
    return [n for n in range(9) if whole(shards_of(folder), n)]


def test_what_is_forgotten_is_forgotten_behind_gaps_too(folder: Path) -> None:
    (shards_of(folder) / "000003.json").unlink()  # a shard without its label
    clear(folder, 1)
    assert there(folder) == [0]
    assert sorted(p.name for p in shards_of(folder).iterdir()) == ["000000.json", "000000.npy"]


def test_a_build_goes_on_up_to_the_first_gap_and_another_begins_anew(
    folder: Path, tiny_clip: Backbone
) -> None:
    encoder = Encoder(tiny_clip)
    new = Manifest(encoder.about(), "pictures")
    claim(shards_of(folder), encoder, collection="pictures", first=0)
    assert [label.ids for label in resumed(folder, encoder, new)] == [["0"], ["1"]]
    assert there(folder) == [0, 1, 3, 5]  # workers that go on look at the others one by one
    later = Manifest(encoder.about(), "pictures", shards=1)
    assert resumed(folder, encoder, later) == []
    assert there(folder) == [0]
    assert '"first": 1' in (shards_of(folder) / BEGUN).read_text()


def test_something_else_than_what_was_begun_is_refused_with_both(folder: Path, tiny_clip: Backbone) -> None:
    encoder = Encoder(tiny_clip)
    claim(shards_of(folder), encoder, collection="pictures", first=0)
    claim(shards_of(folder), encoder)  # a worker knows its encoder only
    rows = PromptSet({Site("image", "0", "prefix"): torch.ones(2, 32)})
    for by, pictures, told in [
        (Encoder(tiny_clip, rows), "pictures", rf"rows none.*rows {rows.written('image')}, pictures.*delete"),
        (encoder, "others", r"pictures of pictures\), and .* pictures of others\)"),
    ]:
        with pytest.raises(ValueError, match=told):
            resumed(folder, by, Manifest(by.about(), pictures))
    assert there(folder) == [0, 1, 3, 5]
