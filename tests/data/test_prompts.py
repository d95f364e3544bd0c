"""Prompts in a file or a list: split, with seeds that training and measuring never share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpt.data.item import DataError
from vpt.data.prompts import PromptData, Prompts, read_prompts

TEN = [f"a photo of {n} mugs" for n in range(10)]


def test_a_file_is_read_by_line_and_each_prompt_once(tmp_path: Path) -> None:
    file = tmp_path / "said.txt"
    file.write_bytes("\ufeffa  red mug \r\n\r\na blue mug\na red mug\n".encode())
    assert read_prompts(file) == ("a red mug", "a blue mug")
    data = PromptData(str(file), val=0.5)
    assert {*data.captions("train"), *data.captions("val")} == {"a red mug", "a blue mug"}
    assert data.protocol()["data"] == "said"


@given(st.lists(st.text(), max_size=8))
def test_whatever_lines_there_are_no_prompt_is_blank_or_doubled(lines: list[str]) -> None:
    if any(line.strip() for line in lines):
        data = PromptData(lines, val=0)
        prompts = data.captions("train")
        assert len(set(prompts)) == len(prompts)
        assert all(prompt == " ".join(prompt.split()) != "" for prompt in prompts)
    else:
        with pytest.raises(DataError, match="holds no prompts"):
            PromptData(lines).setup()


@pytest.mark.parametrize(
    ("content", "told"), [(None, "no file of prompts"), (b"\n \n", "holds no"), (b"\xff", "UTF-8")]
)
def test_files_without_prompts_are_refused(tmp_path: Path, content: bytes | None, told: str) -> None:
    file = tmp_path / "said.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=told):
        PromptData(str(file)).setup()


def test_the_split_is_by_seed_and_parts_share_nothing() -> None:
    data, again, other = PromptData(TEN, seed=1), PromptData(TEN, seed=1), PromptData(TEN, seed=2)
    assert sorted([*data.captions("train"), *data.captions("val")]) == TEN
    assert (len(data.captions("train")), len(data.captions("val"))) == (8, 2)
    assert data.protocol() == again.protocol()
    assert data.protocol()["split"] != other.protocol()["split"]
    assert data.protocol()["counts"] == {"train": 8, "val": 8}  # two prompts, four pictures each
    assert data.protocol()["held"] == "other prompts, other seeds"


def test_without_others_the_same_prompts_measure_with_other_seeds(tmp_path: Path) -> None:
    data = PromptData(TEN[:2], val=0, seeds=3)
    assert data.captions("val") == data.captions("train") == TEN[:2]
    assert data.protocol()["held"] == "the same prompts, other seeds"
    held = [(int(item["image"]), item["key"]) for item in map(data.pictures("val").__getitem__, range(6))]
    assert held == [(seed, prompt) for prompt in TEN[:2] for seed in range(3)]
    trained = {int(Prompts(TEN, 1)[epoch, i]["image"]) for epoch in range(20) for i in range(10)}
    assert len(trained) == 200
    assert not trained & set(range(1000))


def test_a_file_of_held_prompts_measures_and_may_not_be_trained_on(tmp_path: Path) -> None:
    held = tmp_path / "held.txt"
    held.write_text("a cat\n")
    data = PromptData(TEN, held=str(held))
    assert (len(data.captions("train")), data.captions("val")) == (10, ["a cat"])
    held.write_text(f"a cat\n{TEN[3]}\n")
    with pytest.raises(DataError, match="trained on too"):
        PromptData(TEN, held=str(held)).setup()


def test_batches_go_on_where_they_stopped_and_seeds_are_fresh_each_epoch() -> None:
    data = PromptData(TEN, val=0, batch_size=4)
    loader = data.train_dataloader()
    first = [(batch["image"].tolist(), batch["key"]) for batch in loader]
    loader.batch_sampler.sampler.set_epoch(1)
    second = [(batch["image"].tolist(), batch["key"]) for batch in loader]
    assert not {s for seeds, _ in first for s in seeds} & {s for seeds, _ in second for s in seeds}
    stopped = data.train_dataloader()
    next(iter_ := iter(stopped))
    state = stopped.state_dict()
    del iter_
    resumed = data.train_dataloader()
    resumed.load_state_dict(state)
    assert [(batch["image"].tolist(), batch["key"]) for batch in resumed] == first[1:]


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"seeds": 0}, {"val": 1.0}])
def test_options_out_of_range_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        PromptData(TEN, **option)  # type: ignore[arg-type]
