"""Reading without executing: equal to torch on honest files, deaf to forged ones."""

import contextlib
import io
import os
import pickle
import sys
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vpt.importers import read_checkpoint
from vpt.importers.checkpoint import Record, _Archive, read_pickle

STATE = {
    "a": torch.arange(12.0).view(3, 4).mT,  # not contiguous
    "half": torch.ones(2, 2, dtype=torch.bfloat16),
    "whole": torch.arange(3),
    "flag": torch.tensor([True, False]),
    "empty": torch.zeros(0, 4),
    "number": torch.tensor(2.5),
    "parameter": nn.Parameter(torch.ones(2)),
    "words": ["x", ("y", 1, None), {"z": 2.5}],
}


def same(got: Any, wanted: Any) -> None:
    if isinstance(wanted, torch.Tensor):
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted.detach())
    elif isinstance(wanted, dict):
        assert got.keys() == wanted.keys()
        for key in wanted:
            same(got[key], wanted[key])
    else:
        assert got == wanted


@pytest.mark.parametrize(("legacy", "protocol"), [(False, 2), (False, 4), (True, 2)])
def test_plain_files_read_as_torch_reads_them(tmp_path: Path, legacy: bool, protocol: int) -> None:
    path = tmp_path / "a.pth"
    torch.save(OrderedDict(STATE), path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    same(read_checkpoint(path), STATE)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_our_reader_equals_torchs(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.pth"
    shared = torch.arange(6.0)
    torch.save({**STATE, "view": shared[2:4], "all": shared}, path, pickle_protocol=protocol)
    with zipfile.ZipFile(path) as archive:
        same(_Archive(archive).read(), {**STATE, "view": shared[2:4], "all": shared})


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i1", "i4", "i8", "u1", "b1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_arrays_and_scalars_become_tensors_and_numbers(tmp_path: Path, kind: str, order: str) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 2, dtype=kind, order=order)
    torch.save(
        {"x": array, "again": array, "best": array.reshape(-1)[1], "none": array[:0]}, tmp_path / "a.pth"
    )
    found = read_checkpoint(tmp_path / "a.pth")
    for key in ("x", "again"):
        assert np.array_equal(found[key].numpy(), array)
        assert found[key].numpy().dtype == array.dtype
    assert found["best"] == 1
    assert found["none"].shape == (0, 3, 4)


class Config(dict):
    """As yacs pickles its nodes: a dictionary of its own kind."""


class Odd:
    """An object with slots and a list's habits."""

    __slots__ = ("x",)

    def __init__(self) -> None:
        self.x = 1


def test_other_objects_become_stand_ins_and_the_rest_is_read(tmp_path: Path) -> None:
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([nn.Parameter(torch.ones(1))], 1.0), 2)
    odd = {"cfg": Config(lr=1), "args": Namespace(a=1), "odd": Odd(), "sched": scheduler, "path": Path("x")}
    torch.save({**odd, "w": torch.ones(2), "n": np.float32(3)}, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert torch.equal(found["w"], torch.ones(2))
    assert found["n"] == 3
    assert {type(found[k]).__name__ for k in odd} == {"_Inert"}


@pytest.mark.parametrize("protocol", [2, 4])
def test_parameter_containers_become_dictionaries(tmp_path: Path, protocol: int) -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(3))
    held = {"dict": nn.ParameterDict({"a": a, "b": b}), "list": nn.ParameterList([a, b])}
    torch.save(held, tmp_path / "a.pth", pickle_protocol=protocol)
    same(read_checkpoint(tmp_path / "a.pth"), {"dict": {"a": a, "b": b}, "list": {"0": a, "1": b}})


class Bomb:
    """Runs whatever it names when unpickled."""

    def __init__(self, *made: Any) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return self.made


def hostile(path: Path, target: Path) -> list[Any]:
    run = f"open({str(target)!r}, 'w').close()"
    return [
        Bomb(os.system, (f"touch {target}",)),
        Bomb(exec, (run,)),
        Bomb(eval, (run,)),
        Bomb(open, (str(target), "w")),
        Bomb(getattr, ("", "join")),
        Bomb(torch.load, (str(path),)),
        Bomb(torch.hub.load, ("a/b", "c")),
        Bomb(np.save, (str(target), np.ones(1))),
        Bomb(torch.Tensor.fill_, (torch.ones(1), 2.0)),
        Bomb(pickle.loads, (pickle.dumps(1),)),
        Bomb(Bomb, (), {"made": 1}),
    ]


@pytest.mark.parametrize("which", range(11))
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_file_is_executed(tmp_path: Path, which: int, protocol: int) -> None:
    target = tmp_path / "ran"
    torch.save(
        {"x": hostile(tmp_path, target)[which], "w": torch.ones(2)},
        tmp_path / "a.pth",
        pickle_protocol=protocol,
    )
    found = read_checkpoint(tmp_path / "a.pth")
    assert not target.exists()
    assert torch.equal(found["w"], torch.ones(2))
    assert not callable(found["x"])


def zipped(
    path: Path, program: bytes, storage: bytes = bytes(16), compress: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", storage)
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/version", "3\n")
    return path


def tensor_program(count: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A pickle of one float tensor with the numbers given."""
    storage = object()

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if thing is storage else None

    out = io.BytesIO()
    rebuild = Bomb(torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, OrderedDict()))
    Pickler(out, 4).dump({"x": rebuild})
    return out.getvalue()


def test_an_honest_program_reads(tmp_path: Path) -> None:
    wanted = torch.arange(4.0)
    path = zipped(tmp_path / "a.pth", tensor_program(4, 1, (3,), (1,)), wanted.numpy().tobytes())
    assert torch.equal(read_checkpoint(path)["x"], wanted[1:])


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((4, 0, (5,), (1,)), "beyond its storage of 4"),
        ((4, 2, (3,), (1,)), "beyond its storage"),
        ((4, 0, (2, 2), (3, 1)), "beyond its storage"),
        ((4, 0, (10**12,), (0,)), "beyond its storage"),
        ((4, -1, (2,), (1,)), "beyond its storage"),
        ((4, 3, (2,), (-1,)), "beyond its storage"),
        ((10**12, 0, (2,), (1,)), "16 bytes"),
    ],
)
def test_forged_numbers_are_refused_before_memory_is_taken(
    tmp_path: Path, numbers: Any, message: str
) -> None:
    path = zipped(tmp_path / "a.pth", tensor_program(*numbers))
    with pytest.raises(ValueError, match=f"a.pth cannot be read as a checkpoint.*{message}"):
        read_checkpoint(path)


def test_packed_records_and_other_machines_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.pth", tensor_program(4, 0, (4,), (1,)), compress=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="records are compressed"):
        read_checkpoint(path)
    big = np.ones(2, dtype=">f4")
    torch.save({"x": big}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"dtype >f4"):
        read_checkpoint(tmp_path / "b.pth")
    torch.save({"x": np.array([None])}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / "c.pth")


def test_a_memo_far_away_takes_no_memory(tmp_path: Path) -> None:
    program = b"\x80\x04}" + pickle.LONG_BINPUT + (2**32 - 1).to_bytes(4, "little") + pickle.STOP
    assert read_checkpoint(zipped(tmp_path / "a.pth", program)) == {}


def test_a_stack_global_that_hides_a_name_is_only_a_stand_in(tmp_path: Path) -> None:
    deep = b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R."  # STACK_GLOBAL, REDUCE
    assert type(read_checkpoint(zipped(tmp_path / "a.pth", deep))).__name__ == "_Inert"
    attribute = b"\x80\x04\x8c\x08builtins\x8c\x0dexec.__call__\x93\x8c\x01x\x85R."
    assert type(read_checkpoint(zipped(tmp_path / "b.pth", attribute))).__name__ == "_Inert"


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        read_checkpoint(tmp_path / "none.pth")
    for content in (b"", b"hello", b"PK\x03\x04", os.urandom(300)):
        (tmp_path / "a.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.pth cannot be read as a checkpoint"):
            read_checkpoint(tmp_path / "a.pth")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_altered_files_are_read_or_refused_and_load_no_module(
    data: st.DataObject, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.mktemp("altered") / "a.pth"
    torch.save({"x": torch.arange(4.0), "n": np.arange(3.0), "c": Config(a=1)}, path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(len(raw) // 2, len(raw)))])
    before = set(sys.modules)
    with contextlib.suppress(ValueError):  # any other error fails
        read_checkpoint(path)
    assert not {m for m in set(sys.modules) - before if not m.startswith(("torch", "numpy", "encodings"))}


class Datum:
    """As Dassl pickles a picture of a split."""

    def __init__(self, path: str, label: int) -> None:
        self._impath, self._label = path, label


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_plain_pickle_gives_containers_and_the_records_asked_for(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "shot_1-seed_1.pkl"
    held = {"train": [Datum("a/0.jpg", 0), Datum("b/1.jpg", 1)], "odd": Odd(), "n": (1, 2.5, None, "x")}
    path.write_bytes(pickle.dumps(held, protocol=protocol))
    found = read_pickle(path, [f"{Datum.__module__}.Datum"])
    assert found["train"] == [{"_impath": "a/0.jpg", "_label": 0}, {"_impath": "b/1.jpg", "_label": 1}]
    assert {type(item) for item in found["train"]} == {Record}
    assert (found["n"], type(found["odd"]).__name__) == ((1, 2.5, None, "x"), "_Inert")
    assert {type(item).__name__ for item in read_pickle(path)["train"]} == {"_Inert"}


@pytest.mark.parametrize("which", range(11))
def test_nothing_in_a_plain_pickle_is_executed(tmp_path: Path, which: int) -> None:
    target = tmp_path / "ran"
    with contextlib.suppress(ValueError):  # tensors need the records of torch.save, which a pickle lacks
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"x": hostile(tmp_path, target)[which], "n": 3}))
        assert read_pickle(tmp_path / "a.pkl", ["builtins.exec"])["n"] == 3
    assert not target.exists()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_pickle_is_read_or_refused(data: st.DataObject, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("pickle") / "a.pkl"
    good = pickle.dumps({"train": [Datum("a/0.jpg", 0)] * 2, "val": []}, protocol=5)
    at = data.draw(st.integers(0, len(good)))
    path.write_bytes(
        good[:at] + data.draw(st.binary(max_size=8)) + good[data.draw(st.integers(at, len(good))) :]
    )
    with contextlib.suppress(ValueError):
        read_pickle(path, [f"{Datum.__module__}.Datum"])


def test_no_pickle_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no pickle .*gone\.pkl"):
        read_pickle(tmp_path / "gone.pkl")
    (tmp_path / "a.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.pkl cannot be read as a pickle"):
        read_pickle(tmp_path / "a.pkl")
