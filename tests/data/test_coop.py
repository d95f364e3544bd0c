"""Small trees as users of the CoOp line have them; samples against the authors' procedure; files that are none."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vpt.data.coop import open_coop
from vpt.data.item import DataError, Item, Published
from vpt.data.module import ImageData
from vpt.data.plan import Draw, plan
from vpt.data.protocols import card, datasets, shifts
from vpt.data.sources import open_source

Rows = dict[str, list[list[Any]]]  # as in split_zhou_*.json

WITH_JSON = [name for name, found in datasets().items() if found.split.endswith(".json")]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = sum(path.as_posix().encode()) % 256
    Image.new("RGB", (8, 8), (shade, len(path.name), len(path.parent.name))).save(path)


def rows_of(counts: dict[str, list[int]]) -> Rows:
    """Entries of a split with so many pictures of class 0, 1, .., not in the order of classes."""
    rows: Rows = {}
    for split, sizes in counts.items():
        rows[split] = [
            [f"class_{c}/{split}_{i}.jpg", c, f"class_{c}"] for c, n in enumerate(sizes) for i in range(n)
        ]
        rows[split].sort(key=lambda row: (row[0][-5], row[1] * 7 % 5))
    return rows


def grow(root: Path, name: str, rows: Rows, pictures: bool = True) -> Path:
    """ROOT with the data set of a split file; the folder of the data set comes back."""
    found = card(name)
    folder = root / found.folder
    (folder / found.images).mkdir(parents=True, exist_ok=True)
    (folder / found.split).write_text(json.dumps(rows))
    for path, _, _ in (row for part in rows.values() for row in part if pictures):
        picture(folder / found.images / path)
    return folder


SMALL = {"train": [9, 3, 6, 20, 9], "val": [4, 5, 2, 6, 9], "test": [2, 3, 2, 2, 3]}


@pytest.mark.parametrize("name", WITH_JSON)
def test_split_files_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    rows = rows_of({"train": [2, 1], "val": [1, 1], "test": [1, 2]})
    folder = grow(tmp_path, name, rows)
    source = open_source(f"coop:{name}", tmp_path)
    assert isinstance(source, Published)
    assert (source.name, source.classes, source.multilabel) == (f"coop:{name}", ("class 0", "class 1"), False)
    for split, items in source.splits().items():
        assert [[i.key, i.label] for i in items] == [row[:2] for row in rows[split]]
        for item in items:
            assert source.read(item) == (folder / card(name).images / item.key).read_bytes()
    published = card(name).counts["train"]
    assert source.origin["train"] == f"{card(name).split} (published with {published} pictures)"


def test_aircraft_is_read_from_its_lists(tmp_path: Path) -> None:
    folder = tmp_path / "fgvc_aircraft"
    folder.mkdir()
    (folder / "variants.txt").write_text("Boeing 717\nA300B4\nF/A-18\n")
    lists = {"train": [("002", "F/A-18"), ("001", "Boeing 717")], "val": [("003", "A300B4")], "test": []}
    for split, pairs in lists.items():
        (folder / f"images_variant_{split}.txt").write_text("".join(f"{n} {c}\n" for n, c in pairs))
        for number, _ in pairs:
            picture(folder / "images" / f"{number}.jpg")
    source = open_coop("fgvc_aircraft", tmp_path)
    assert source.classes == ("Boeing 717", "A300B4", "F/A-18")
    assert [(i.key, i.label) for i in source.splits()["train"]] == [("002.jpg", 2), ("001.jpg", 0)]
    assert source.read(source.splits()["val"][0]) == (folder / "images" / "003.jpg").read_bytes()
    assert source.origin["val"] == "images_variant_val.txt (published with 3333 pictures)"
    (folder / "images_variant_test.txt").write_text("004 A-10\n")
    with pytest.raises(DataError, match=r"test.txt names 1 class\(es\) that variants.txt does not: 'A-10'"):
        open_coop("fgvc_aircraft", tmp_path)


NAMES = {
    "n00000003": "tench",
    "n00000005": "sunglasses",
    "n00000040": "kite",
    "n00000041": "sunglasses",
}


def imagenet(root: Path, name: str, folders: list[str], each: int = 2) -> Path:
    folder = root / card(name).folder
    for place in card(name).folders.values():
        for word in folders:
            for i in range(each):
                picture(folder / place / word / f"{i}.JPEG")
        (folder / place / "README.txt").write_text("no class")
        (folder / place / folders[0] / ".hidden.jpg").write_text("no picture")
    (folder / "classnames.txt").write_text("".join(f"{word} {said}\n" for word, said in NAMES.items()))
    return folder


def test_imagenet_tests_on_its_validation_pictures(tmp_path: Path) -> None:
    folder = imagenet(tmp_path, "imagenet", list(NAMES))
    source = open_coop("imagenet", tmp_path)
    assert source.classes == (
        "tench",
        "sunglasses",
        "kite",
        "sunglasses",
    )  # as published: a name occurs twice
    parts = source.splits()
    assert {split: Counter(i.label for i in items) for split, items in parts.items()} == {
        split: dict.fromkeys(range(4), 2) for split in ("train", "test")
    }
    assert parts["test"][2].key == "images/val/n00000005/0.JPEG"
    assert source.read(parts["test"][2]) == (folder / parts["test"][2].key).read_bytes()
    picture(folder / "images" / "val" / "n00000099" / "0.JPEG")
    with pytest.raises(DataError, match=r"1 class folder\(s\) without a name in classnames.txt: n00000099"):
        open_coop("imagenet", tmp_path)


@pytest.mark.parametrize("name", list(shifts()))
def test_variants_of_imagenet_have_test_pictures_of_their_classes(
    tmp_path: Path, name: str, config: dict[str, object]
) -> None:
    words = list(NAMES)[1:] if name != "imagenetv2" else ["0", "1", "2", "3"]
    imagenet(tmp_path, name, words)
    data = ImageData(f"coop:{name}", root=str(tmp_path), shots=16)
    assert data.classes == tuple(NAMES.values())[-len(words) :]
    protocol = data.protocol()
    assert protocol["counts"] == {"train": 0, "val": 0, "test": 2 * len(words)}
    data.bind(config)
    labels = [label for batch in data.test_dataloader() for label in batch["label"].tolist()]
    assert labels == [label for label in range(len(words)) for _ in range(2)]
    assert data.val_dataloader() == []
    with pytest.raises(DataError, match=rf"coop:{name} has no train pictures, only test"):
        data.train_dataloader()


def test_numbered_folders_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    words = [str(i) for i in range(12)]
    folder = imagenet(tmp_path, "imagenetv2", words, each=1)
    names = [f"n{i:08d} name_{i}" for i in range(12)]
    (folder / "classnames.txt").write_text("\n".join(names))
    source = open_coop("imagenetv2", tmp_path)
    assert source.classes == tuple(f"name {i}" for i in range(12))
    assert all(f"/{i.label}/" in i.key for i in source.splits()["test"])
    (folder / "classnames.txt").write_text("\n".join(names[:11]))
    with pytest.raises(DataError, match=r"without a name in classnames.txt: 11"):
        open_coop("imagenetv2", tmp_path)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_samples_are_those_of_coop(tmp_path: Path, shots: int, seed: int, coop: Any) -> None:
    grow(tmp_path, "eurosat", rows_of(SMALL), pictures=False)
    source = open_coop("eurosat", tmp_path)
    own = source.splits()
    train, val = coop(own["train"], own["val"], shots, seed)
    made = plan(source, Draw(shots=shots, seed=seed))
    assert made.parts == {"train": train, "val": val, "test": own["test"]}
    assert made.origin["val"] == f"{source.origin['val']}, {min(shots, 4)} a class"
    assert plan(source, Draw(shots=shots, seed=seed, val=0.0)).parts == made.parts
    gone = frozenset({val[0].key})  # what cannot be read is left out of the published sample, not drawn anew
    assert plan(source, Draw(shots=shots, seed=seed), gone).parts["val"] == val[1:]
    more = plan(source, Draw(shots=shots, seed=seed, val_shots=6)).parts
    assert Counter(i.label for i in more["val"]) == {c: min(6, n) for c, n in enumerate(SMALL["val"])}


def test_imagenets_val_comes_from_what_the_sample_leaves(tmp_path: Path, coop: Any) -> None:
    imagenet(tmp_path, "imagenet", list(NAMES), each=6)
    source = open_coop("imagenet", tmp_path)
    train, _ = coop(source.splits()["train"], [], 3, 1)
    none = plan(source, Draw(shots=3, val=0.0))
    assert (none.parts["train"], none.parts["val"], none.origin["val"]) == (train, [], "none")
    made = plan(source, Draw(shots=3))
    assert made.parts["train"] == train
    assert Counter(i.label for i in made.parts["val"]) == dict.fromkeys(range(4), 3)
    assert not {i.key for i in made.parts["val"]} & {i.key for i in train}
    assert made.origin["val"] == "the rest of train, 3 a class"
    assert made.parts["test"] == source.splits()["test"]


class Datum:
    """As Dassl has it: what it is made of lies under names with an underscore."""

    def __init__(self, impath: str, label: int, classname: str) -> None:
        self._impath, self._label, self._domain, self._classname = impath, label, 0, classname


@pytest.fixture
def dassl(monkeypatch: pytest.MonkeyPatch) -> type[Datum]:
    """A class that pickles under the name of Dassl's."""
    names = ["dassl", "dassl.data", "dassl.data.datasets", "dassl.data.datasets.base_dataset"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    made = type("Datum", (Datum,), {"__module__": names[-1]})
    sys.modules[names[-1]].Datum = made  # type: ignore[attr-defined]
    return made


def dump(folder: Path, parts: dict[str, list[Any]], shots: int = 2, seed: int = 1) -> Path:
    path = folder / "split_fewshot" / f"shot_{shots}-seed_{seed}.pkl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(parts, protocol=pickle.HIGHEST_PROTOCOL))
    return path


@pytest.mark.parametrize(
    "prefix", ["/home/somebody/data/oxford_flowers/jpg/", "D:\\data\\oxford_flowers\\jpg\\"]
)
def test_a_sample_that_the_authors_code_wrote_is_read(
    tmp_path: Path, dassl: type[Datum], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(SMALL)
    folder = grow(tmp_path, "oxford_flowers", rows, pictures=False)
    source = open_coop("oxford_flowers", tmp_path)
    drawn = plan(source, Draw(shots=2))
    chosen = {"train": rows["train"][-9:][::-1], "val": rows["val"][:4]}
    sep = "\\" if "\\" in prefix else "/"
    data = {
        split: [dassl(prefix + path.replace("/", sep), label, name) for path, label, name in part]
        for split, part in chosen.items()
    }
    path = dump(folder, data)
    for name in [name for name in sys.modules if name.startswith("dassl")]:
        monkeypatch.delitem(sys.modules, name)  # nobody needs Dassl to read it
    parts, origin = source.sample(2, 1)
    assert {split: [[i.key, i.label] for i in items] for split, items in parts.items()} == {
        split: [row[:2] for row in part] for split, part in chosen.items()
    }
    assert origin == dict.fromkeys(("train", "val"), f"split_fewshot/{path.name}")
    for others in (Draw(shots=2, seed=2), Draw(shots=1), Draw(shots=2, val_shots=1)):
        assert plan(source, others).origin["train"] == source.origin["train"]
    path.unlink()
    assert plan(source, Draw(shots=2)) == drawn


def test_a_written_sample_of_imagenet_has_train_only(tmp_path: Path, dassl: type[Datum]) -> None:
    folder = imagenet(tmp_path, "imagenet", list(NAMES), each=4)
    data = [dassl(f"/x/imagenet/images/train/{word}/3.JPEG", i, word) for i, word in enumerate(NAMES)]
    dump(folder, {"train": data}, shots=1)
    made = plan(open_coop("imagenet", tmp_path), Draw(shots=1))
    assert [i.key for i in made.parts["train"]] == [f"images/train/{word}/3.JPEG" for word in NAMES]
    assert len(made.parts["val"]) == 4
    assert made.origin["train"] == "split_fewshot/shot_1-seed_1.pkl"


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def test_a_written_sample_of_another_split_or_none_is_refused_and_runs_nothing(
    tmp_path: Path, dassl: type[Datum]
) -> None:
    rows = rows_of(SMALL)
    folder = grow(tmp_path, "dtd", rows, pictures=False)
    source = open_coop("dtd", tmp_path)

    def datums(split: str, **other: Any) -> list[Datum]:
        return [
            dassl(**{"impath": f"/x/{p}", "label": n, "classname": c, **other}) for p, n, c in rows[split]
        ]

    good = {"train": datums("train"), "val": datums("val")}
    wrong: list[tuple[Any, str]] = [
        ({**good, "train": datums("test")}, "12 of its 12 train pictures are not in train with that label"),
        ({**good, "val": datums("val", label=0)}, r"22 of its 26 val pictures .*/x/class_"),
        ({**good, "val": datums("val", label="0")}, "no few-shot split"),
        ({"train": good["train"]}, "no few-shot split: wanted lists .* under train and val"),
        ({"train": [("a", 0)], "val": []}, "no few-shot split"),
        ({**good, "train": [Bomb(tmp_path / "ran")]}, "no few-shot split"),
        ([], "no few-shot split"),
        (Bomb(tmp_path / "ran"), "no few-shot split"),
    ]
    for data, match in wrong:
        dump(folder, data)
        with pytest.raises(DataError, match=f"(?s){match}.*Delete it to have the sample drawn anew"):
            source.sample(2, 1)
    path = dump(folder, good)
    source.sample(2, 1)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"pkl cannot be read as a pickle.*Delete it"):
        source.sample(2, 1)
    assert not (tmp_path / "ran").exists()


def test_what_is_not_there_is_said_with_the_layout(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"coop:dtd needs a root: the folder that holds dtd/.*dtd/images/CLASS"
    ):
        open_source("coop:dtd")
    for name in {**datasets(), **shifts()}:
        with pytest.raises(DataError, match=rf"coop:{name}: .*No such file.*Wanted below {tmp_path}: "):
            open_source(f"coop:{name}", tmp_path)
    folder = grow(tmp_path, "dtd", rows_of(SMALL), pictures=False)
    (folder / "images").rmdir()
    with pytest.raises(DataError, match=r"there is no .*dtd/images. Wanted below"):
        open_source("coop:dtd", tmp_path)
    imagenet(tmp_path, "imagenet_a", ["n00000003"])
    (tmp_path / "imagenet-adversarial" / "classnames.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"a list in .* is no UTF-8"):
        open_source("coop:imagenet_a", tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is no split: wanted lists under train, val and test"),
        ('{"train": [], "val": []}', "is no split"),
        ('{"train": [["a.jpg", "0", "a"]], "val": [], "test": []}', "1 of 1 entries of train are not"),
        ('{"train": [["a.jpg", true, "a"]], "val": [], "test": []}', "1 of 1 entries of train are not"),
        (
            '{"train": [["a.jpg", 1, "a"]], "val": [], "test": []}',
            "labels must be 0..K-1 without gaps; found 1",
        ),
        ('{"train": [["a.jpg", 0, "a"], ["b.jpg", 0, "b"]], "val": [], "test": []}', "0 is 'a' and 'b'"),
        ('{"train": [["a.jpg", 0, "_"]], "val": [], "test": []}', "0 is ''"),
        ('{"train": [["../a.jpg", 0, "a"]], "val": [], "test": []}', "outside its folder: ../a.jpg"),
        ('{"train": [["/a.jpg", 0, "a"]], "val": [], "test": []}', "outside its folder: /a.jpg"),
        ('{"train": [["a.jpg", 0, "a"]], "val": [], "test": [["a.jpg", 0, "a"]]}', "more than once: a.jpg"),
    ],
)
def test_split_files_that_are_none_are_refused(tmp_path: Path, content: str, match: str) -> None:
    folder = grow(tmp_path, "sun397", rows_of(SMALL), pictures=False)
    (folder / "split_zhou_SUN397.json").write_text(content)
    with pytest.raises(DataError, match=match):
        open_coop("sun397", tmp_path)


words = st.text("abc/._ 0", min_size=1, max_size=6)
row = st.tuples(words, st.integers(-1, 3), st.sampled_from(["a", "b_c", "d", " "])).map(list)
honest = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["train", "val", "test"])), max_size=20)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | row,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=3), inside, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    found=st.fixed_dictionaries({k: st.lists(row, max_size=4) | junk for k in ("train", "val", "test")})
    | junk
)
def test_any_json_is_a_split_or_refused(tmp_path_factory: pytest.TempPathFactory, found: Any) -> None:
    root = tmp_path_factory.mktemp("any")
    folder = grow(root, "ucf101", {}, pictures=False)
    (folder / card("ucf101").split).write_text(json.dumps(found))
    with contextlib.suppress(DataError):  # any other error fails
        source = open_coop("ucf101", root)
        for split, items in source.splits().items():
            assert [[i.key, i.label] for i in items] == [entry[:2] for entry in found[split]]
            assert all(Path(i.file).is_relative_to(folder) for i in items)
            assert [source.classes[i.label] for i in items] == [  # type: ignore[index]
                name.replace("_", " ").strip() for _, _, name in found[split]
            ]


@settings(max_examples=50, deadline=None)
@given(drawn=honest)
def test_an_honest_split_file_is_read_whole(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, str]]
) -> None:
    root = tmp_path_factory.mktemp("honest")
    new = {label: i for i, label in enumerate(sorted({label for label, _ in drawn}))}
    rows: Rows = {"train": [], "val": [], "test": []}
    for i, (label, split) in enumerate(drawn):
        rows[split].append([f"{label}/{i}.jpg", new[label], f"a_{label}"])
    grow(root, "ucf101", rows, pictures=False)
    source = open_coop("ucf101", root)
    assert source.classes == tuple(f"a {label}" for label in new)
    folder = f"{root}/ucf101/UCF-101-midframes"
    assert source.splits() == {
        split: [Item(path, label, f"{folder}/{path}") for path, label, _ in part]
        for split, part in rows.items()
    }


def test_base_and_novel_classes_of_a_data_set(tmp_path: Path, coop: Any) -> None:
    rows = rows_of({"train": [9, 6, 8, 12, 9], "val": [4, 5, 3, 6, 4], "test": [2, 3, 2, 2, 3]})
    grow(tmp_path, "caltech101", rows)
    source = open_coop("caltech101", tmp_path)
    train, val = coop(source.splits()["train"], source.splits()["val"], 4, 2)
    whole = {"train": train, "val": val, "test": source.splits()["test"]}
    hashes = set()
    for subset, kept in (("base", [0, 1, 2]), ("novel", [3, 4])):
        data = ImageData("coop:caltech101", root=str(tmp_path), shots=4, seed=2, subset=subset)  # type: ignore[arg-type]
        data.setup()
        protocol = data.protocol()
        assert data.classes == data.summary().classes == tuple(f"class {i}" for i in kept)
        assert (protocol["subset"], protocol["classes"]) == (subset, len(kept))
        counts = {split: Counter(i.label for i in items) for split, items in whole.items()}
        assert data.summary().counts == {
            split: {f"class {label}": counts[split][label] for label in kept} for split in whole
        }
        assert protocol["counts"] == {s: sum(counts[s][label] for label in kept) for s in whole}
        hashes.add(protocol["split"])
    assert len(hashes) == 2
