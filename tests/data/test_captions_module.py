"""ImageData with captions: splits, samples, batches, report, protocol, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from vpt.data.item import DataError
from vpt.data.module import ImageData


@pytest.fixture
def told(tmp_path, plant) -> Path:
    """30 pictures, with one, two or three captions each."""
    folder = plant(tmp_path / "told", {"a": 20, "b": 10})
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        path.with_suffix(".txt").write_text(
            "\n".join(f"caption {n} of {path.parent.name}/{path.stem}" for n in range(i % 3 + 1))
        )
    return folder


@pytest.fixture
def make(told, config):
    def make(path: Path | str = told, **options: object) -> ImageData:
        data = ImageData(str(path), **{"captions": True, "batch_size": 4, **options})  # type: ignore[arg-type]
        data.bind(config)
        return data

    return make


def test_batches_and_captions_belong_together(make, told):
    data = make(augment="crop")
    assert data.classes == ()
    assert not data.multilabel
    batch = next(iter(data.train_dataloader()))
    assert {k: (v.dtype, tuple(v.shape)) for k, v in batch.items() if k != "key"} == {
        "image": (torch.float32, (4, 3, 16, 16)),
        "label": (torch.int64, (4,)),
        "index": (torch.int64, (4,)),
        "view": (torch.int64, (4,)),
    }
    assert batch["label"].tolist() == [0] * 4
    for loader, split in (
        (data.train_dataloader(), "train"),
        (data.test_dataloader(), "test"),
        (data.val_dataloader(), "val"),
    ):
        said = data.captions(split)
        assert len(said) == len(data.pictures(split))
        for batch in loader:
            for key, index in zip(batch["key"], batch["index"].tolist(), strict=True):
                assert list(said[index]) == (told / key).with_suffix(".txt").read_text().split("\n")


def test_splits_are_drawn_by_picture_and_samples_of_all(make, tmp_path):
    data = make()
    assert data.protocol()["counts"] == {"train": 18, "val": 6, "test": 6}
    few = make(shots=7, seed=3)
    assert few.protocol()["counts"] == {"train": 7, "val": 6, "test": 6}
    assert few.protocol()["origin"]["val"] == "0.2 of all, 6 pictures"
    assert make(shots=4, val_shots=2).protocol()["counts"] == {"train": 4, "val": 2, "test": 6}
    assert make(shots=4).protocol()["counts"] == {"train": 4, "val": 4, "test": 6}
    assert make(shots=7, seed=3).protocol() == few.protocol()
    assert make(shots=7, seed=4).protocol()["split"] != few.protocol()["split"]
    assert make(join_val=True).protocol()["counts"] == {"train": 24, "val": 0, "test": 6}
    file = tmp_path / "split.json"
    assert make(shots=7, seed=3, split_file=str(file)).protocol() == few.protocol()
    assert make(shots=7, seed=3, split_file=str(file)).protocol() == few.protocol()
    assert len(json.loads(file.read_text())["splits"]["train"]) == 7


def test_protocol_and_report_speak_of_captions(make):
    data = make()
    protocol = data.protocol()
    assert protocol["captions"] == {s: sum(map(len, data.captions(s))) for s in ("train", "val", "test")}
    assert sum(protocol["captions"].values()) == 60
    assert not {"classes", "subset", "weighted"} & protocol.keys()
    assert json.loads(json.dumps(protocol)) == protocol
    report = data.summary()
    for split, (fewest, middle, most) in report.captions.items():
        numbers = sorted(map(len, data.captions(split)))
        assert (fewest, most) == (numbers[0], numbers[-1])
        assert middle == (numbers[(len(numbers) - 1) // 2] + numbers[len(numbers) // 2]) / 2
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report)
    shown = console.export_text()
    assert "told: pictures with captions" in shown
    assert "median captions" in shown
    assert "class" not in shown


def test_own_splits_are_kept(make, tmp_path, plant):
    folder = plant(tmp_path / "own", {"train": 8, "dev": 2, "test/deep": 3})
    for path in folder.rglob("*.png"):
        path.with_suffix(".txt").write_text(str(path))
    protocol = make(folder).protocol()
    assert protocol["counts"] == {"train": 8, "val": 2, "test": 3}
    assert set(protocol["origin"].values()) == {"the source's own"}


def test_pictures_without_captions_or_that_cannot_be_read_are_refused_or_left_out(make, told):
    (told / "a" / "1.txt").unlink()
    (told / "a" / "2.txt").write_text(" \n")
    with pytest.raises(
        DataError, match=r"2 of 30 pictures have no caption: a/1.png, a/2.png\. .*skip_unreadable"
    ):
        make().setup()
    (told / "b" / "3.png").write_bytes(b"no picture")
    (told / "b" / "4.png").write_bytes(b"")
    (told / "b" / "4.txt").unlink()
    data = make(skip_unreadable=True)
    data.setup()
    left_out = dict(data.summary().unreadable)
    assert left_out.keys() == {"a/1.png", "a/2.png", "b/3.png", "b/4.png"}
    assert len(data.summary().unreadable) == 4
    assert left_out["a/1.png"] == left_out["a/2.png"] == "it has no caption"
    used = [i.key for s in ("train", "val", "test") for i in data.pictures(s).items]
    assert len(used) == 26
    assert not left_out.keys() & set(used)
    assert all(data.captions("train"))
    for name in ("a/1.txt", "a/2.txt", "b/4.txt"):
        (told / name).write_text("said")
    with pytest.raises(DataError, match=r"2 picture\(s\) of told cannot be read: .*b/3.png"):
        make().setup()


def test_lost_files_of_a_manifest_are_left_out_when_asked(make, tmp_path, plant):
    plant(tmp_path, {"images": 12})
    path = tmp_path / "m.csv"
    path.write_text("path,caption\n" + "".join(f"{i}.png,picture {i}\n" for i in range(13)))
    with pytest.raises(DataError, match=r"1 of 13 pictures are not there: 12.png"):
        make(path).setup()
    data = make(path, skip_unreadable=True)
    data.setup()
    assert [key for key, _ in data.summary().unreadable] == ["12.png"]
    assert sum(data.protocol()["counts"].values()) == 12
    assert (
        sum(make(path, root=str(tmp_path / "images"), skip_unreadable=True).protocol()["counts"].values())
        == 12
    )


def test_scenes_end_to_end(make):
    data = make("scenes:40", shots=8, augment="none")
    assert data.protocol()["counts"] == {"train": 8, "val": 4, "test": 12}
    assert data.protocol()["captions"] == {"train": 64, "val": 32, "test": 96}
    assert sum(len(batch["key"]) for batch in data.test_dataloader()) == 12


def test_what_needs_classes_is_refused(make, told):
    for wrong in ({"weighted": True}, {"subset": "base"}):
        with pytest.raises(ValueError, match="with captions there are no classes"):
            ImageData(str(told), captions=True, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="open it with captions=True"):
        ImageData("digits").captions("train")
    with pytest.raises(
        DataError, match=r"shots is 19, but told has 18 pictures to draw train from. Wanted: 1..18"
    ):
        make(shots=19).setup()
    with pytest.raises(DataError, match="shots is 0, but told"):
        make(shots=0).setup()
    with pytest.raises(DataError, match="val_shots is 7, but told has 6"):
        make(shots=4, val_shots=7).setup()
    with pytest.raises(DataError, match="told has no val pictures, only train, test"):
        make(val=0.0).captions("val")
    with pytest.raises(DataError, match="no pictures with captions at 'digits'"):
        make("digits").setup()


CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "data").glob("captions-*.yaml"))


def test_there_is_a_config_for_each_kind() -> None:
    kinds = {path.stem.removeprefix("captions-") for path in CONFIGS}
    assert kinds == {"shards", "folder", "manifest", "coco", "scenes"}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_a_config_of_captions_builds(file: Path) -> None:
    data = ImageData(**yaml.safe_load(file.read_text())["data"])
    assert data.captioned
    if data.path.startswith("scenes"):
        assert data.protocol()["counts"] == {"train": 480, "val": 80, "test": 240}
