"""Reads what ``torch.save`` or ``pickle`` wrote without executing it.

Tensors come through ``torch.load(weights_only=True)``. Where that is not enough (numpy arrays and scalars,
pickled
schedulers and configurations: all occur in authors' files), a reader of our own builds tensors and plain
containers, and puts an inert stand-in for any other name; it imports nothing and calls nothing that a file
names.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

__all__ = ["Record", "checked", "few", "read_checkpoint", "read_pickle", "read_tensors"]

MAX_BYTES = 8 * 2**30  # the largest backbone with its optimiser; a prompt file has kilobytes


def read_tensors(path: str | os.PathLike[str]) -> Any:
    """What a ``.safetensors`` file holds, tensors by name; of any other name, what :func:`read_checkpoint` reads.

    Raises as that does.
    """
    if Path(path).suffix.lower() != ".safetensors":
        return read_checkpoint(path)
    _check_size(path)
    try:
        return load(Path(path).read_bytes())
    except (SafetensorError, KeyError) as error:  # KeyError: a type of number that torch does not have
        raise ValueError(f"{path} is no safetensors file ({error}). Copy or download it again.") from None


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """What ``torch.save`` wrote, as tensors and plain containers; the rest as stand-ins that do nothing.

    Raises FileNotFoundError, or ValueError for a file that is none, is damaged, or claims more than it holds.
    """
    _check_size(path)
    zipped = zipfile.is_zipfile(path)
    try:
        if zipped:
            _check_zip(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols: what torch cannot read, we read
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a forged file can raise anything
        if isinstance(error, _BadFile) or not zipped:
            raise ValueError(f"{path} cannot be read as a checkpoint: {str(error)[:200]}") from None
    try:
        with zipfile.ZipFile(path) as archive:
            return _Archive(archive).read()
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {str(error)[:200]}") from None


def read_pickle(path: str | os.PathLike[str], records: Collection[str] = ()) -> Any:
    """What a plain pickle file holds: containers, numbers and words; other objects as stand-ins that do nothing.

    records: full names of classes whose objects are wanted as dictionaries of their attributes (``Record``).
    Raises FileNotFoundError, or ValueError for a file that is none or is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no pickle {str(path)!r}.")
    if Path(path).stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES >> 30} GiB, which no list of pictures is.")
    try:
        return _Reader(io.BytesIO(Path(path).read_bytes()), dict.fromkeys(records, Record)).load()
    except Exception as error:  # a forged file can raise anything
        raise ValueError(f"{path} cannot be read as a pickle: {str(error)[:200]}") from None


def _check_size(path: str | os.PathLike[str]) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {str(path)!r}.")
    if Path(path).stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES >> 30} GiB, which no prompt file is.")


def checked(path: str | os.PathLike[str], what: str, value: Any, ndim: int) -> Tensor:
    """A value of a checkpoint as a float32 tensor of ``ndim`` dimensions; raises ValueError where it is none, claims
    more numbers than the file holds, or holds NaN or infinity."""
    if not isinstance(value, Tensor) or value.ndim != ndim or not value.is_floating_point():
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{path}: {what} should be a tensor of {ndim} dimensions, found {shape}.")
    if value.layout != torch.strided or value.device.type != "cpu":
        raise ValueError(
            f"{path}: {what} should be a plain tensor, found a {value.device.type} {value.layout} one."
        )
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{path}: {what} claim more numbers than the file holds.")
    if not (value := value.detach().float()).isfinite().all():  # also of what float32 cannot hold
        raise ValueError(f"{path}: {what} hold NaN or infinity.")
    return value


def few(names: Iterable[str]) -> str:
    """The first names, for a message."""
    return ", ".join(sorted(names)[:5]) or "nothing"


class Record(dict[str, Any]):
    """The attributes of an object whose class was asked for by name."""


class _Parameters(dict[str, Any]):
    """What a ParameterDict holds by name, or a ParameterList by number ("0", "1", ...)."""


class _BadFile(Exception):
    """A file that claims what it does not hold."""


def _check_zip(path: str | os.PathLike[str]) -> None:
    """torch.save stores its records as they are; a packed one is a way to take memory."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(r.compress_type != zipfile.ZIP_STORED for r in records):
        raise _BadFile("its records are compressed, which torch.save never does.")
    if sum(r.file_size for r in records) > Path(path).stat().st_size:
        raise _BadFile("its records claim more bytes than the file has.")


class _Inert:
    """Stands for an object that is not rebuilt: takes what a pickle does to it, and does nothing."""

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...


class _Type:
    """A numpy dtype by its letters, e.g. "f4"."""

    def __init__(self, letters: Any, *_: Any) -> None:
        self.letters, self.order = str(letters).lstrip("<|="), "<"

    @property
    def torch(self) -> torch.dtype:
        if self.letters not in DTYPES or self.order not in "<|=":
            raise _BadFile(f"it holds a numpy array of dtype {self.order}{self.letters}.")
        return DTYPES[self.letters]


STORAGES = {"Untyped": "uint8", "Byte": "uint8", "Char": "int8"}  # the others are called as their dtype is
DTYPES = {
    **{"f2": torch.float16, "f4": torch.float32, "f8": torch.float64},
    **{"i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64},
    **{"u1": torch.uint8, "b1": torch.bool},
}


def _array(_: Any, shape: Sequence[int], dtype: Any, fortran: bool, raw: bytes) -> Tensor:
    """A numpy array's state as a tensor."""
    flat = torch.frombuffer(bytearray(raw), dtype=dtype.torch) if raw else torch.zeros(0, dtype=dtype.torch)
    if not fortran:
        return flat.view(*shape)
    return flat.view(*reversed(shape)).permute(*reversed(range(len(shape))))


class _Call:
    """One of our own builders, under the name that a pickle calls."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run


class _Storage:
    """The dtype of a torch storage."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def _tensor(flat: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    """A tensor over a flat storage; its extent is checked before memory is taken."""
    numbers = [offset, *size, *stride]
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    empty = 0 in size
    if min(numbers) < 0 or math.prod(size) > len(flat) or (not empty and last >= len(flat)):
        raise _BadFile(f"a tensor of shape {tuple(size)} reaches beyond its storage of {len(flat)}.")
    return flat.as_strided(size, stride, 0 if empty else offset).clone()


def _scalar(dtype: Any, raw: bytes) -> Any:
    return torch.frombuffer(bytearray(raw), dtype=dtype.torch).item()


def _parameter(value: Any, *_: Any) -> Any:
    return value


BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": lambda *items: OrderedDict(*items),
    "_codecs.encode": lambda text, _: text.encode("latin1"),
    **{f"{module}.bytes": lambda: b"" for module in ("builtins", "__builtin__")},  # how protocol 2 writes b""
    "numpy.dtype": _Type,
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: torch.empty(0) for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"torch.nn.modules.container.Parameter{kind}": _Parameters for kind in ("Dict", "List")},
}


_Machine: Any = pickle._Unpickler  # its stack is ours to guard, which the typed face of it hides


class _Reader(_Machine):
    """A pickle machine without a way out: names become our builders or stand-ins, and only builders are run.

    The Python one, because the C one sets attributes of what it finds, and takes memory for forged numbers.
    """

    def __init__(self, file: io.BytesIO, builders: Mapping[str, Callable[..., Any]] = BUILDERS) -> None:
        super().__init__(file)
        self.builders = builders

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self.builders:
            return _Call(self.builders[full])
        if module.partition(".")[0] == "torch" and name.endswith("Storage"):
            dtype = getattr(torch, STORAGES.get(name[:-7], name[:-7].lower()), None)
            if isinstance(dtype, torch.dtype):
                return _Storage(dtype)
        return _Inert()

    def _made(self, call: Any, args: Any) -> Any:
        return call.run(*args) if type(call) is _Call else _Inert()

    def _instantiate(self, call: Any, args: Any) -> None:
        self.append(self._made(call, args))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._made(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_reduce()

    def load_build(self) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if type(built) is _Type:
            built.order = state[1]
        elif type(built) is Tensor:
            built.data = _array(*state)
        elif type(built) is Record and type(state) is dict:
            built.update(state)
        elif (
            type(built) is _Parameters and type(state) is dict and isinstance(state.get("_parameters"), dict)
        ):
            built.update(state["_parameters"])

    dispatch: ClassVar[dict[int, Any]] = {
        **_Machine.dispatch,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
    }
    for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8):  # never in such files
        del dispatch[_code[0]]


class _Archive:
    """The zip file of torch.save: one pickle, and a record for each storage."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.root = next(n for n in archive.namelist() if n.endswith("data.pkl"))[: -len("data.pkl")]
        self.storages: dict[str, Tensor] = {}

    def read(self) -> Any:
        if f"{self.root}byteorder" in self.archive.namelist() and self._record("byteorder") != b"little":
            raise _BadFile("it was written on a big-endian machine.")
        reader = _Reader(io.BytesIO(self._record("data.pkl")))
        reader.persistent_load = self._storage
        return reader.load()

    def _record(self, name: str) -> bytes:
        return self.archive.read(self.root + name)

    def _storage(self, saved: Any) -> Tensor:
        kind, storage, key, _, count = saved
        if kind != "storage" or type(storage) is not _Storage:
            raise _BadFile("it refers to something that is no tensor.")
        if key not in self.storages:
            raw = self._record(f"data/{key}")
            if len(raw) != count * storage.dtype.itemsize:
                raise _BadFile(f"storage {key} has {len(raw)} bytes, not those of {count} numbers.")
            self.storages[key] = (
                torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.zeros(0)
            )
        flat = self.storages[key]
        return flat.view(storage.dtype) if len(flat) else flat.to(storage.dtype)
