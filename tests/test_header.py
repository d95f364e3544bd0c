"""The header reader, which knows no torch, against safetensors' own reader and against damaged files."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from vpt.header import FORMAT, MAX_HEADER, BadPromptFile, read_header
from vpt.prompt import Site
from vpt.promptset import PromptSet

SITE = {"tower": "image", "stage": "0", "slot": "prefix", "n": 2, "width": 3}
ROWS = {"image/0/prefix": torch.ones(2, 3)}
again = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(path: Path, header: Any, data: bytes = b"") -> Path:
    """A file with any header: a dict, text or bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def labelled(path: Path, about: Any, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """A whole safetensors file whose label says ``about``."""
    save_file(ROWS if tensors is None else tensors, path, {"vpt": json.dumps(about)})
    return path


@again
@given(st.data())
def test_it_agrees_with_safetensors_on_names_types_shapes_and_metadata(
    tmp_path: Path, data: st.DataObject
) -> None:
    dtypes = {
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "U8": torch.uint8,
    }
    shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
    named = data.draw(
        st.dictionaries(
            st.from_regex(r"(head|method)/[a-z]{1,6}(\.[a-z]{1,6})?", fullmatch=True),
            st.tuples(st.sampled_from(sorted(dtypes)), shapes),
            max_size=4,
        )
    )
    tensors = {k: torch.zeros(shape, dtype=dtypes[dtype]) for k, (dtype, shape) in named.items()}
    about = {"format": FORMAT, "note": data.draw(st.text(max_size=10))}
    header = read_header(labelled(tmp_path / "x.safetensors", about, tensors))
    with safe_open(tmp_path / "x.safetensors", "pt") as f:
        slices = {k: f.get_slice(k) for k in f.keys()}  # noqa: SIM118  it is no dict
        assert header.tensors == {k: (s.get_dtype(), tuple(s.get_shape())) for k, s in slices.items()}
        assert header.about == json.loads(f.metadata()["vpt"]) == about
    assert header.bytes == (tmp_path / "x.safetensors").stat().st_size
    assert header.parameters == sum(t.numel() for t in tensors.values())


def test_the_numbers_that_were_learned_leave_the_cache_out(tmp_path: Path) -> None:
    tensors = {**ROWS, "head/weight": torch.zeros(4, 5), "class_features": torch.zeros(9, 9)}
    about = {"format": FORMAT, "sites": [SITE]}
    assert read_header(labelled(tmp_path / "x", about, tensors)).parameters == 6 + 20


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no prompt file '{path}'"):
            read_header(path)


@pytest.mark.parametrize("length", [0, 1, 500, 2**40, 2**64 - 1])
def test_a_forged_length_takes_no_memory(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(struct.pack("<Q", length) + b"{}" * 100)
    with pytest.raises(BadPromptFile, match=f"its header claims {length} bytes, the file has 208"):
        read_header(path)


def test_a_header_above_the_limit_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "x", b"{" + b" " * MAX_HEADER + b"}")
    with pytest.raises(BadPromptFile, match=f"claims {MAX_HEADER + 2} bytes"):
        read_header(path)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"\xff\xfe{}",
        '{"a": 1}'.encode("utf-16-le"),
        b"{" * 50_000,
        b'{"a":' * 50_000,
        b" {}",
        {"t": {"dtype": "F32", "shape": [1]}},
        {"t": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
        {"t": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}},
        {"t": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}},
        {"t": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
        {"t": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}},
        {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"t": {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}},
        {"t": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}},
        {"t": {"dtype": "F32", "shape": [2**29], "data_offsets": [0, 2**31 + 4]}},
        {"t": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"t": {"dtype": "F32", "shape": [1], "data_offsets": "04"}},
        {"t": "F32"},
        b'{"t": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}',
    ],
    ids=lambda h: str(h)[:60],
)
def test_a_header_that_is_none_is_refused(tmp_path: Path, header: Any) -> None:
    with pytest.raises(BadPromptFile, match="has a damaged header"):
        read_header(written(tmp_path / "x", header, b"\0" * 4))


@pytest.mark.parametrize(
    ("begin", "room", "message"),
    [
        (4, 12, "tensor 'b' begins at byte 4, expected 8"),
        (12, 20, "tensor 'b' begins at byte 12, expected 8"),
        (8, 15, "its tensors take 16 bytes, 15 are there"),
        (8, 17, "its tensors take 16 bytes, 17 are there"),
    ],
)
def test_tensors_lie_end_to_end_and_fill_the_file(
    tmp_path: Path, begin: int, room: int, message: str
) -> None:
    entry = {"dtype": "F32", "shape": [2]}
    header = {"a": {**entry, "data_offsets": [0, 8]}, "b": {**entry, "data_offsets": [begin, begin + 8]}}
    with pytest.raises(BadPromptFile, match=message):
        read_header(written(tmp_path / "x", header, b"\0" * room))


def test_a_file_of_another_tool_is_sent_to_the_importer(tmp_path: Path) -> None:
    save_file({"emb_params": torch.zeros(2, 3)}, tmp_path / "x")
    with pytest.raises(BadPromptFile, match=r"no prompt set: it has no 'vpt' metadata.*vpt import"):
        read_header(tmp_path / "x")
    metadata = {"__metadata__": {"vpt": {"format": 1}}}
    with pytest.raises(BadPromptFile, match="has no 'vpt' metadata"):
        read_header(written(tmp_path / "x", metadata))


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ([], "names no format"),
        ({"format": True}, "names no format"),
        ({"format": "1"}, "names no format"),
        ({"format": 2}, r"has format 2, this vpt reads format 1\. Install a newer visual-prompt-tuning"),
        ({"format": 0}, r"has format 0, this vpt reads format 1\.$"),
        ({"sites": 5}, "sites is no list"),
        ({"classes": "cat"}, "classes is no list"),
        ({"backbone": "timm/x"}, "backbone is no dict"),
        ({"tensors": {"a": 1}}, "tensors is no list"),
        ({"sites": [{}]}, r"a damaged site in its metadata: \{\}"),
        ({"sites": ["image/0/prefix"]}, "a damaged site"),
        ({"sites": [{**SITE, "n": None}]}, "a damaged site"),
        ({"sites": [{**SITE, "n": float("inf")}]}, "a damaged site"),
        ({"sites": [{**SITE, "stage": 0}]}, "a damaged site"),
        ({"sites": [{**SITE, "stage": "1"}]}, "names the site image/1/prefix and holds no tensor"),
        ({"sites": [{**SITE, "n": 3}]}, r"rows at image/0/prefix are \(2, 3\), the metadata says \(3, 3\)"),
        ({"sites": []}, "it holds rows at image/0/prefix that its metadata does not name"),
        (
            {"sites": [SITE], "head": {"reads": "features"}},
            "it should hold head/bias, head/weight and does not",
        ),
        (
            {"sites": [SITE], "tensors": ["method/net.weight"]},
            "it should hold method/net.weight and does not",
        ),
    ],
    ids=str,
)
def test_a_label_that_does_not_fit_is_refused(tmp_path: Path, about: Any, message: str) -> None:
    about = {"format": FORMAT, **about} if isinstance(about, dict) else about
    with pytest.raises(BadPromptFile, match=message):
        read_header(labelled(tmp_path / "x", about))


def test_a_label_that_is_no_json_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[" * 100_000, ""):
        (tmp_path / "x").write_bytes(save(ROWS, {"vpt": text}))
        with pytest.raises(BadPromptFile, match="has damaged metadata"):
            read_header(tmp_path / "x")


def test_the_check_notices_what_no_rule_could(tmp_path: Path) -> None:
    path = PromptSet({Site("image", "0", "prefix"): torch.ones(2, 3)}, about={"classes": ["cat"]}).save(
        tmp_path / "x"
    )
    whole = path.read_bytes()
    for before, after in ((b"cat", b"cow"), (struct.pack("<f", 1), struct.pack("<f", 2)), (b"F32", b"I32")):
        path.write_bytes(whole.replace(before, after, 1))
        with pytest.raises(BadPromptFile, match="was altered or damaged: its check is"):
            read_header(path)
    path.write_bytes(whole)
    assert read_header(path).about["classes"] == ["cat"]
