from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import pytest
import torch
import webdataset as wds
from lightning.pytorch.callbacks import ModelCheckpoint
from timm.data import create_transform

import vpt.data.module as module
import vpt.data.order as order
from vpt.data.item import DataError
from vpt.data.module import ImageData

Batch = dict[str, torch.Tensor]

# Lightning 2.6 uses a part of torch's pytree that newer torch calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


@pytest.fixture
def pets(tmp_path, plant) -> Path:
    return plant(tmp_path / "pets", {"cat": 12, "dog": 10, "owl": 14})


@pytest.fixture
def make(pets, config):
    def make(path: Path | str = pets, **options: object) -> ImageData:
        data = ImageData(str(path), **{"batch_size": 4, **options})  # type: ignore[arg-type]
        data.bind(config)
        return data

    return make


def keys(loader: object) -> list[list[str]]:
    return [batch["key"] for batch in loader]  # type: ignore[attr-defined]


def test_batches(make, config):
    data = make()
    batch = next(iter(data.train_dataloader()))
    assert {k: (v.dtype, tuple(v.shape)) for k, v in batch.items() if k != "key"} == {
        "image": (torch.float32, (4, 3, 16, 16)),
        "label": (torch.int64, (4,)),
        "index": (torch.int64, (4,)),
        "view": (torch.int64, (4,)),
    }
    items = data.pictures("train").items
    assert batch["key"] == [items[i].key for i in batch["index"]]
    assert [data.classes[label] for label in batch["label"]] == [key.split("/")[0] for key in batch["key"]]
    theirs = create_transform(**config, is_training=False)
    want = torch.stack([theirs(data._decoded.get(items[i])) for i in batch["index"]])
    assert torch.equal(batch["image"], want)


def test_evaluation_goes_through_every_picture_in_order(make):
    data = make(augment="crop")
    for split, loader in (
        ("val", data.val_dataloader()),
        ("test", data.test_dataloader()),
        ("test", data.predict_dataloader()),
    ):
        batches = list(loader)
        assert [k for b in batches for k in b["key"]] == [i.key for i in data.pictures(split).items]
        assert torch.cat([b["index"] for b in batches]).tolist() == list(range(len(data.pictures(split))))
        assert all((b["view"] == 0).all() for b in batches)
        plain = torch.stack([data.pictures(split)[i]["image"] for i in range(len(data.pictures(split)))])
        assert torch.equal(plain, torch.cat([b["image"] for b in batches]))


def test_no_val(make):
    data = make(val=0.0)
    assert data.val_dataloader() == []
    assert data.protocol()["origin"]["val"] == "none"


def test_few_shot_and_protocol(make):
    data = make(shots=3, seed=2, augment="flip", views=2)
    protocol = data.protocol()
    assert protocol["counts"] == {"train": 9, "val": 7, "test": 7}
    assert {
        k: protocol[k]
        for k in ("data", "classes", "shots", "val", "test", "seed", "augment", "views", "weighted")
    } == {
        "data": "pets",
        "classes": 3,
        "shots": 3,
        "val": 0.2,
        "test": 0.2,
        "seed": 2,
        "augment": "flip",
        "views": 2,
        "weighted": False,
    }
    assert json.loads(json.dumps(protocol)) == protocol
    assert make(shots=3, seed=2).protocol()["split"] == protocol["split"]
    assert make(shots=3, seed=3).protocol()["split"] != protocol["split"]


def test_a_half_of_the_classes_of_shards_with_names_of_several_words(tmp_path, png, config):
    names = ["bass fish", "ant", "side of a car", "Joshua tree", "zebra"]
    (tmp_path / "classes.json").write_text(json.dumps([{"index": i, "name": n} for i, n in enumerate(names)]))
    for split, each in (("train", 6), ("val", 2), ("test", 3)):
        with wds.TarWriter(f"{tmp_path}/{split}-000000.tar") as tar:
            for i in range(5 * each):
                tar.write({"__key__": f"{i:03d}", "png": png(i), "cls": str(i * 3 % 5).encode()})
    whole = ImageData(str(tmp_path), shots=4, batch_size=2)
    whole.setup()
    for subset, first, own in (("base", 0, names[:3]), ("novel", 3, names[3:])):
        data = ImageData(str(tmp_path), shots=4, batch_size=2, subset=subset)  # type: ignore[arg-type]
        data.bind(config)
        assert data.classes == data.summary().classes == tuple(own)
        assert data.summary().counts == {
            split: {name: counts[name] for name in own} for split, counts in whole.summary().counts.items()
        }
        said = data.protocol()
        assert (said["subset"], said["classes"], said["split"] == whole.protocol()["split"]) == (
            subset,
            len(own),
            False,
        )
        batches = list(data.test_dataloader())
        found = [(k, int(label)) for b in batches for k, label in zip(b["key"], b["label"], strict=True)]
        assert whole._plan is not None
        kept = range(first, first + len(own))
        assert found == [(i.key, i.label - first) for i in whole._plan.parts["test"] if i.label in kept]
        assert {int(x) for b in data.train_dataloader() for x in b["label"]} == set(range(len(own)))
    assert whole.protocol()["subset"] == "all"


def test_views_are_said_as_far_as_they_are_fixed(make):
    assert [make(augment=a, views=v).fixed_views for a, v in (("none", 0), ("flip", 0), ("crop", 3))] == [
        1,
        0,
        3,
    ]


def test_multilabel_batches(tmp_path, png, config):
    rows = ["path,label"]
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(png(i))
        rows.append(f"{i}.png,{'a|b' if i % 2 else 'c'}")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    data = ImageData(str(tmp_path / "m.csv"), batch_size=4)
    data.bind(config)
    batch = next(iter(data.train_dataloader()))
    want = [[1.0, 1.0, 0.0] if int(key.split(".")[0]) % 2 else [0.0, 0.0, 1.0] for key in batch["key"]]
    assert (batch["label"].dtype, batch["label"].tolist()) == (torch.float32, want)
    assert data.multilabel
    with pytest.raises(DataError, match="weighted sampling needs one label"):
        ImageData(str(tmp_path / "m.csv"), weighted=True).setup()


def test_weighted_sampling_evens_the_classes(tmp_path, plant, config):
    data = ImageData(
        str(plant(tmp_path / "d", {"rare": 8, "common": 56})), batch_size=8, weighted=True, val=0.0
    )
    data.bind(config)
    loader = data.train_dataloader()
    labels = []
    for epoch in range(12):
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        labels += [x for batch in loader for x in batch["label"].tolist()]
    share = sum(data.classes[x] == "rare" for x in labels) / len(labels)
    assert abs(share - 0.5) < 4 * 0.5 / len(labels) ** 0.5


@pytest.mark.parametrize("augment", ["none", "crop"])
def test_processes_share_each_global_batch(make, monkeypatch, augment):
    whole = list(make(augment=augment).train_dataloader())
    evaluated = keys(make().test_dataloader())
    parts, tests = [], []
    for rank in range(2):
        for where in (order, module):
            monkeypatch.setattr(where, "process", lambda rank=rank: (rank, 2))
        parts.append(list(make(augment=augment).train_dataloader()))
        tests.append([k for batch in keys(make().test_dataloader()) for k in batch])
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(batch["image"][0::2], first["image"])
        assert torch.equal(batch["image"][1::2], second["image"])
    assert sorted(tests[0] + tests[1]) == sorted(k for batch in evaluated for k in batch)


def test_workers_change_nothing(make):
    one, two = (list(make(augment="crop", workers=w).train_dataloader()) for w in (0, 2))
    assert [b["key"] for b in one] == [b["key"] for b in two]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(one, two, strict=True))


def test_train_images_for_initialisers(make, config):
    data = make(augment="crop")
    batches = list(data.train_images(10))
    assert [len(b) for b in batches] == [4, 4, 2]
    assert torch.equal(torch.cat(batches), torch.cat(list(make(augment="flip").train_images(10))))
    plain = {data.pictures("train")[i]["image"].numpy().tobytes() for i in range(len(data.pictures("train")))}
    seen = [image.numpy().tobytes() for batch in data.train_images(1000) for image in batch]
    assert set(seen) == plain
    assert len(seen) == len(plain)


def test_unreadable_pictures_are_refused_or_left_out(pets, make):
    (pets / "cat" / "bad.png").write_bytes(b"")
    (pets / "owl" / "worse.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"2 picture\(s\) of pets cannot be read: .*cat/bad.png: it is empty"):
        make().setup("fit")
    data = make(skip_unreadable=True)
    data.setup("fit")
    assert {key for key, _ in data.summary().unreadable} == {"cat/bad.png", "owl/worse.png"}
    used = {i.key for split in ("train", "val", "test") for i in data.pictures(split).items}
    assert len(used) == 36
    assert not used & {"cat/bad.png", "owl/worse.png"}


def test_split_file(make, tmp_path):
    path = tmp_path / "splits" / "pets.json"
    first = make(split_file=str(path), shots=2).protocol()
    assert json.loads(path.read_text())["seed"] == 1
    assert make(split_file=str(path), shots=2).protocol() == first
    with pytest.raises(DataError, match=r"shots 2 \(asked for: 4\)"):
        make(split_file=str(path), shots=4).setup()


def test_refusals(make, pets):
    with pytest.raises(DataError, match=r"11 pictures a class.*dog \(6\)"):
        make(shots=11).setup("fit")
    with pytest.raises(ValueError, match="batch_size 0"):
        ImageData("digits", batch_size=0)
    with pytest.raises(ValueError, match="subset is 'new', wanted one of all, base, novel"):
        ImageData("digits", subset="new")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="call bind"):
        ImageData(str(pets)).train_dataloader()


class Small(L.LightningModule):
    """Trains one linear layer and remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3 * 16 * 16, 3)
        self.seen: list[tuple[object, ...]] = []

    def loss(self, batch: Batch) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.layer(batch["image"].flatten(1)), batch["label"])

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.seen.append(
            (self.current_epoch, *batch["key"], *batch["view"].tolist(), float(batch["image"].sum()))
        )
        return self.loss(batch)

    def validation_step(self, batch: Batch, index: int) -> None:
        self.log("loss", self.loss(batch), batch_size=len(batch["label"]))

    def test_step(self, batch: Batch, index: int) -> None:
        self.log("test", self.loss(batch), batch_size=len(batch["label"]))

    def predict_step(self, batch: Batch, index: int) -> list[str]:
        return batch["key"]  # type: ignore[return-value]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)


def trainer(**options: object) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=3,
        use_distributed_sampler=False,
        **quiet,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_fit_resumes_to_the_same_result(make, tmp_path, workers):
    class Every(ModelCheckpoint):  # Lightning wants to tell them apart
        @property
        def state_key(self) -> str:
            return f"every {self.filename}"

    def data() -> ImageData:
        return make(shots=4, augment="crop", workers=workers)  # 12 pictures, 3 batches

    keep = {"dirpath": tmp_path / "kept", "save_top_k": -1}
    callbacks = [
        Every(filename="step {step}", every_n_train_steps=1, **keep),
        Every(filename="end {epoch}", save_on_train_epoch_end=True, every_n_epochs=1, **keep),
        Every(filename="val {epoch}", save_on_train_epoch_end=False, every_n_epochs=1, **keep),
    ]
    whole = Small()
    trainer(callbacks=callbacks).fit(whole, data())
    assert len(whole.seen) == 9
    assert len({keys[1:5] for keys in whole.seen}) == 9  # orders differ by epoch
    # inside an epoch, at its last step, after it, and in the validation that ends it
    chosen = ["step step=1", "step step=3", "step step=5", "end epoch=1", "val epoch=1"]
    for name in chosen if workers == 0 else chosen[2:4]:
        resumed = Small()
        trainer(enable_checkpointing=False).fit(
            resumed, data(), ckpt_path=str(tmp_path / "kept" / f"{name}.ckpt"), weights_only=False
        )
        assert resumed.seen == whole.seen[len(whole.seen) - len(resumed.seen) :], name
        assert len(resumed.seen) == {"step": 9 - int(name[-1]), "end ": 3, "val ": 3}[name[:4]]
        assert torch.equal(resumed.layer.weight, whole.layer.weight), name


def test_lightning_validates_tests_and_predicts(make):
    data, model = make(), Small()
    run = trainer(enable_checkpointing=False)
    images = [
        (data.pictures(s)[i]["image"], data.pictures(s)[i]["label"]) for s in ("test",) for i in range(7)
    ]
    batch = {"image": torch.stack([x for x, _ in images]), "label": torch.tensor([y for _, y in images])}
    found = run.test(model, data, verbose=False)[0]["test"]
    assert found == pytest.approx(model.loss(batch).item(), rel=1e-5)
    assert run.validate(model, data, verbose=False)[0]["loss"] > 0
    predicted = run.predict(model, data)
    assert [k for keys in predicted for k in keys] == [i.key for i in data.pictures("test").items]  # type: ignore[union-attr]
