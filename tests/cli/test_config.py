"""One parser for YAML and for the short way: what is typed is what is meant, and what is not is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vpt.cli import main
from vpt.cli.config import checked, parse, rates


def write(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def test_short_names_and_long_ones_are_the_same() -> None:
    short = "--data photos/ --model=timm/test_vit --method vpt-shallow --shots 4 --batch-size 8 --epochs 3"
    short += " --weight-decay 1e-4 --out runs --device cpu --size 32"
    long = "--data.path=photos/ --model.name timm/test_vit --method.name vpt-shallow --data.shots=4"
    long += " --data.batch_size 8 --task.epochs=3 --task.weight_decay 1e-4 --trainer.out runs --trainer.device cpu"
    long += " --model.size 32"
    found = parse("fit", short.split())
    assert found.as_dict() == parse("fit", long.split()).as_dict()
    assert (found.data.path, found.data.shots, found.data.batch_size) == ("photos/", 4, 8)
    assert (found.task.weight_decay, found.task.epochs, found.model.size) == (1e-4, 3, 32)
    assert (found.trainer.out, found.trainer.device) == ("runs", "cpu")


def test_defaults_are_those_of_the_method() -> None:
    assert parse("fit", ["--data", "x"]).method.name == "vpt-deep"
    assert parse("fit", ["--data", "x"]).method.layers == "all"
    assert parse("fit", ["--data", "x", "--method", "vpt-shallow"]).method.layers == "first"
    deep = parse("fit", ["--data", "x", "--method.layers", "last-third", "--method.length", "3"]).method
    assert (deep.layers, deep.length) == ("last-third", 3)
    assert parse("fit", ["--data", "x", "--model.pretrained", "false"]).model.pretrained is False


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("0.1", (0.1,)),
        ("0.1,0.3", (0.1, 0.3)),
        ("1e-3,1e-2", (1e-3, 1e-2)),
        ("search", "search"),
        ("[1,2]", (1, 2)),
    ],
)
def test_learning_rates_are_one_several_or_a_search(typed: str, meant: object, tmp_path: Path) -> None:
    assert parse("fit", ["--data", "x", "--lr", typed]).task.lr == meant
    config = write(tmp_path / "c.yaml", f"data: x\ntask: {{lr: '{typed}'}}\n")
    assert parse("fit", ["--config", config]).task.lr == meant


def test_rates_of_yaml_are_numbers_even_where_yaml_reads_text() -> None:
    assert yaml.safe_load("1e-3") == "1e-3"
    assert rates(["1e-3", 2]) == [1e-3, 2.0]
    assert rates(0.5) == [0.5]


def test_yaml_may_write_plain_strings(tmp_path: Path) -> None:
    config = write(
        tmp_path / "c.yaml", "data: photos/\nmodel: timm/test_vit\nmethod: vpt-shallow\ntask: classify\n"
    )
    found = parse("fit", ["--config", config])
    assert (found.data.path, found.model.name, found.method.name) == (
        "photos/",
        "timm/test_vit",
        "vpt-shallow",
    )
    assert found.task.objective == "classify"


def test_options_win_over_yaml_wherever_they_stand(tmp_path: Path) -> None:
    content = {
        "data": {"path": "photos/", "shots": 2, "seed": 7},
        "method": {"name": "vpt-deep", "length": 5},
    }
    config = write(tmp_path / "c.yaml", content)
    for argv in (["--config", config, "--shots", "16"], ["--shots", "16", "--config", config]):
        found = parse("fit", argv)
        assert (found.data.shots, found.data.seed, found.method.length) == (16, 7, 5)
    found = parse("fit", ["--config", config, "--method", "vfpt"])
    assert (found.method.name, found.method.length) == ("vfpt", 5)


def test_what_print_config_prints_is_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--data", "x", "--method", "pixel", "--lr", "40", "--optimizer", "sgd"]
    with pytest.raises(SystemExit):
        parse("fit", [*argv, "--print_config"])
    config = write(tmp_path / "c.yaml", capsys.readouterr().out)
    assert parse("fit", ["--config", config]).method == parse("fit", argv).method
    assert parse("fit", ["--config", config]).task == parse("fit", argv).task


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--data", "x", "--shotz", "3"], ["no option --shotz", "Did you mean --shots"]),
        (["--data", "x", "--length", "3"], ["no option --length", "Did you mean --method.length"]),
        (
            ["--data", "x", "--method", "linear", "--method.length", "5"],
            ["--method.length", "linear has no options"],
        ),
        (["--data", "x", "--method.kind", "patch"], ["--method.kind", "vpt-deep has length, layers"]),
        (["--data", "x", "--method", "vpt"], ["no method 'vpt'", "vpt-shallow, vpt-deep"]),
        (["--data", "x", "--lr"], ["--lr needs a value"]),
        (["--lr", "--data", "x"], ["--lr needs a value"]),
        (["--data", "x", "--lr", "fast"], ["lr is 'fast'", "0.1,0.3, or search"]),
        (["--data", "x", "--shots", "many"], ["data.shots is many, wanted int or null"]),
        (["--data", "x", "--schedule", "up"], ["task.schedule is up, wanted cosine, constant"]),
        (["--data", "x", "--epochs", "0"], ["epochs is 0, wanted at least 1"]),
        (["--data", "x", "--lr", "-1"], ["learning rates are positive"]),
        (["photos/"], ["'photos/' stands alone", "--data photos/"]),
        (["--shots", "3"], ["which pictures", "--data"]),
        (["--config", "nowhere.yaml"], ["no config file 'nowhere.yaml'"]),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_to_do(
    argv: list[str], told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *argv]) == 2
    said = capsys.readouterr().err
    assert said.startswith("vpt: ")
    for part in told:
        assert part in said


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("data: x\nmodels: y\n", "the key models. There are task, model, method, data"),
        ("data: {path: x, shotz: 3}\n", "no key data.shotz. Did you mean data.shots"),
        (
            "data: x\nmethod: {name: linear, length: 3}\n",
            "no key method.length. The method linear has no options",
        ),
        ("data: x\nmethod: {name: vpt-deep, length: ten}\n", "method.length is ten, wanted int"),
        ("data: x\ntask: {lr: quick}\n", "lr is 'quick'"),
        ("data: x\ntask: [1, 2]\n", "task should hold keys with values"),
        ("data: [x\n", "is no YAML"),
        ("- data\n", "should hold keys with values"),
        ("", "should hold keys with values"),
    ],
)
def test_a_yaml_that_cannot_be_used_is_refused_by_name(
    content: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path / "mine.yaml", content)
    assert main(["fit", "--config", config]) == 2
    assert told in capsys.readouterr().err


def test_help_says_what_the_docstrings_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--method", "pixel", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "[--shots] pictures a class for training" in said
    assert "[--batch-size] of one global batch" in said
    assert '--method.kind {padding,patch,random-patch} "padding" a frame' in said
    assert "epoch e shows view e % V" in said
    assert "class '" not in said


def test_nested_mappings_are_checked_alike() -> None:
    found = checked("compare", {"data": {"path": "x"}, "task": {"weight_decay": "1e-4"}}, "c.yaml")
    assert found.task.weight_decay == 1e-4
    with pytest.raises(ValueError, match=r"c\.yaml: there is no key task\.epoch\. Did you mean task\.epochs"):
        checked("compare", {"data": {"path": "x"}, "task": {"epoch": 3}}, "c.yaml")
