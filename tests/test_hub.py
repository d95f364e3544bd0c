"""Prompt files on the hub: a server on this machine that answers what huggingface_hub asks."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import yaml

from vpt.header import BadPromptFile, Header, read_header
from vpt.hub import HubError, card, pull, push
from vpt.prompt import Site
from vpt.promptset import PromptSet

TOKEN = "hf_of_this_test"


class Hub(ThreadingHTTPServer):
    """Repositories in memory: name to files by path, as the hub keeps them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.messages: list[str] = []
        self.calls: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _say(self, status: int, said: Any, code: str = "") -> None:
        error = {"X-Error-Code": code} if code else {}
        self._answer(status, json.dumps(said).encode(), {"Content-Type": "application/json", **error})

    def do_POST(self) -> None:
        hub, raw = self.server, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.calls.append(self.path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._say(401, {"error": "Invalid username or password."})
        if self.path == "/api/validate-yaml":
            front = json.loads(raw)["content"].split("---")[1]
            yaml.safe_load(front)
            return self._say(200, {"warnings": [], "errors": []})
        if self.path == "/api/repos/create":
            asked = json.loads(raw)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            if asked["organization"] == "somebody-else":
                return self._say(403, {"error": "You don't have the rights to create a model here"})
            known = name in hub.repos
            hub.repos.setdefault(name, {})
            hub.private |= {name} if asked.get("visibility") == "private" else set()
            return self._say(409 if known else 200, {"url": f"{hub.url}/{name}"})
        repo = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(raw)["files"]]
            return self._say(200, {"files": files})
        for line in map(json.loads, raw.splitlines()):
            if line["key"] == "header":
                hub.messages.append(line["value"]["summary"])
            else:
                hub.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self._say(200, {"commitUrl": f"{hub.url}/{repo}/commit/1", "commitOid": "1" * 40})

    def do_HEAD(self) -> None:
        self.server.calls.append(self.path)
        if self.path.startswith("/api/models/"):  # is it there? asked when it cannot be made
            return self._say(401, {"error": "Invalid credentials in Authorization header"})
        user, name, _, revision, file = self.path.lstrip("/").split("/")
        repo = f"{user}/{name}"
        if user == "gated":
            return self._say(403, {}, "GatedRepo")
        if repo not in self.server.repos:
            return self._say(404, {}, "RepoNotFound")
        if revision != "main":
            return self._say(404, {}, "RevisionNotFound")
        if file not in self.server.repos[repo]:
            return self._say(404, {}, "EntryNotFound")
        data = self.server.repos[repo][file]
        facts = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "1" * 40}
        return self._answer(200, data, facts)

    do_GET = do_HEAD


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    huggingface_hub.close_session()
    yield server
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()


ABOUT: dict[str, Any] = {
    "kind": "prompt set",
    "task": "classify",
    "method": {"name": "vpt-deep", "options": {"length": 3}, "paper": "2203.12119"},
    "backbone": {
        "name": "timm/vit_tiny_patch16_224.augreg_in21k",
        "fingerprints": {"image": "0123456789abcdef"},
    },
    "classes": ["a|b", "c_d"],
    "metrics": [
        {"name": "top1", "value": 0.90625, "split": "val", "count": 32, "seed": 4},
        {"name": "top1", "value": 0.875, "split": "test", "count": 1234, "seed": 4},
        {"name": "ece", "value": 0.0625, "split": "test", "count": 1234, "seed": 4},
    ],
    "protocol": {
        "data": "torchvision:CIFAR10",
        "shots": 16,
        "seed": 4,
        "counts": {"train": 32, "test": 1234},
    },
    "train": {"lr": 0.01, "epochs": 7},
}
SECRET = {
    "train": {**ABOUT["train"], "command": "vpt fit --data /home/me/secret"},
    "backbone": {**ABOUT["backbone"], "weights": "/home/me/secret/vit.pth"},
}


def write(path: Path, **changes: Any) -> Path:
    rows = {Site("image", stage, "prefix"): torch.randn(3, 8) for stage in "01"}
    head = {"weight": torch.randn(2, 8), "bias": torch.zeros(2)}
    return PromptSet(rows, head, about={**ABOUT, "head": {"reads": "features"}, **changes}).save(path)


def front(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_what_is_pushed_comes_back_bit_for_bit(hub: Hub, tmp_path: Path) -> None:
    file = write(tmp_path / "made.safetensors")
    assert push(file, "me/flowers", message="First") == f"{hub.url}/me/flowers"
    assert hub.repos["me/flowers"].keys() == {"prompts.safetensors", "README.md"}
    assert hub.messages == ["First"]
    assert not hub.private
    got = pull("me/flowers")
    assert got == Path("flowers.safetensors")
    assert got.read_bytes() == file.read_bytes()
    assert pull("me/flowers", out=tmp_path / "new" / "mine.safetensors").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("folder", ["/home/me/secret/", "C:\\me\\secret\\", "secret/", ""])
def test_what_goes_up_names_no_folder_of_this_machine(hub: Hub, tmp_path: Path, folder: str) -> None:
    changed = {**SECRET, "backbone": {**SECRET["backbone"], "weights": f"{folder}vit.pth"}}
    file = write(tmp_path / "made.safetensors", **changed)
    before = file.read_bytes()
    push(file, "me/flowers")
    assert file.read_bytes() == before
    assert all(b"secret" not in data for data in hub.repos["me/flowers"].values())
    own, got = PromptSet.load(file), PromptSet.load(pull("me/flowers"))  # whole: its check holds
    assert {k: t.tolist() for k, t in got.tensors().items()} == {
        k: t.tolist() for k, t in own.tensors().items()
    }
    assert got.about["backbone"] == {**ABOUT["backbone"], "weights": "vit.pth"}
    assert got.about["train"] == ABOUT["train"]
    same = own.about.keys() - {"backbone", "train"}
    assert same == got.about.keys() - {"backbone", "train"}
    assert all(own.about[k] == got.about[k] for k in same)
    assert b"weights=FILE" in hub.repos["me/flowers"]["README.md"]
    again = tmp_path / "again.safetensors"
    again.write_bytes(hub.repos["me/flowers"]["prompts.safetensors"])
    push(again, "me/again")
    assert hub.repos["me/again"]["prompts.safetensors"] == again.read_bytes()


def test_a_second_push_replaces_and_a_private_one_says_so(hub: Hub, tmp_path: Path) -> None:
    push(write(tmp_path / "a.safetensors"), "me/flowers", private=True)
    again = write(tmp_path / "b.safetensors")
    push(again, "me/flowers")
    assert hub.repos["me/flowers"]["prompts.safetensors"] == again.read_bytes()
    assert hub.private == {"me/flowers"}


def test_a_name_without_user_goes_to_ones_own_account(hub: Hub, tmp_path: Path) -> None:
    assert push(write(tmp_path / "a.safetensors"), "my_flowers") == f"{hub.url}/me/my_flowers"
    assert b'vpt.pull("me/my_flowers")' in hub.repos["me/my_flowers"]["README.md"]


def test_what_is_no_prompt_set_is_refused_before_any_call(hub: Hub, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(write(tmp_path / "a.safetensors").read_bytes()[:-1])
    with pytest.raises(BadPromptFile, match="cut short"):
        push(cut, "me/flowers")
    with pytest.raises(FileNotFoundError):
        push(tmp_path / "none.safetensors", "me/flowers")
    with pytest.raises(BadPromptFile, match="baseline 'bias' and is no prompt set"):
        push(write(tmp_path / "b.safetensors", kind="baseline", method={"name": "bias"}), "me/flowers")
    with pytest.raises(ValueError, match="Give USER/NAME"):
        push(tmp_path / "a.safetensors", "me/my/flowers")
    assert hub.calls == []


def test_without_a_token_it_says_how_to_get_one(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.safetensors")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"needs a token.*hf auth login.*HF_TOKEN"):
        push(file, "me/flowers")
    assert hub.calls == []
    push(file, "me/flowers", token=TOKEN)
    with pytest.raises(HubError, match=r"does not let this token write to it .*401.*hf auth login"):
        push(file, "me/flowers", token="hf_an_old_one")
    with pytest.raises(HubError, match=r"does not let this token write to it .*403"):
        push(file, "somebody-else/flowers", token=TOKEN)


@pytest.mark.parametrize(
    ("repo", "options", "told"),
    [
        ("me/flower", {}, "no repository me/flower, or it is private. Check the name"),
        ("gated/flowers", {}, "is gated. Ask for access"),
        ("me/flowers", {"revision": "v9"}, "no such revision"),
        ("me/flowers", {"filename": "other.safetensors"}, "not that file"),
        ("me/fl/owers", {}, "Give USER/NAME"),
    ],
)
def test_what_cannot_be_pulled_leaves_what_was_there(
    hub: Hub, tmp_path: Path, repo: str, options: dict[str, str], told: str
) -> None:
    push(write(tmp_path / "a.safetensors"), "me/flowers")
    kept = tmp_path / "kept.safetensors"
    kept.write_bytes(b"mine")
    with pytest.raises((HubError, ValueError), match=told):
        pull(repo, out=kept, **options)
    assert kept.read_bytes() == b"mine"


def test_a_damaged_file_replaces_nothing(hub: Hub, tmp_path: Path) -> None:
    whole = write(tmp_path / "a.safetensors").read_bytes()
    hub.repos["me/flowers"] = {"prompts.safetensors": whole[:-4]}
    kept = tmp_path / "kept.safetensors"
    kept.write_bytes(b"mine")
    with pytest.raises(
        BadPromptFile, match=r"me/flowers has no prompt set as prompts\.safetensors: .*cut short"
    ):
        pull("me/flowers", out=kept)
    assert kept.read_bytes() == b"mine"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["a.safetensors", "kept.safetensors"]
    with pytest.raises(ValueError, match="is a folder"):
        pull("me/flowers", out=tmp_path)


def test_offline_it_says_so_and_uses_what_was_fetched_before(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub tries again, for half a minute
    file = write(tmp_path / "a.safetensors")
    push(file, "me/flowers")
    pull("me/flowers")
    hub.shutdown()
    hub.server_close()
    huggingface_hub.close_session()  # with the connection that it kept
    assert pull("me/flowers", out="again.safetensors").read_bytes() == file.read_bytes()
    with pytest.raises(HubError, match="cannot be reached, and no copy of me/birds"):
        pull("me/birds")
    with pytest.raises(HubError, match=r"cannot be reached .*Check the network"):
        push(file, "me/flowers")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is not set"):
        push(file, "me/flowers")


def test_the_card_says_what_the_file_says(tmp_path: Path) -> None:
    secret = {"train": SECRET["train"]}
    text = card(read_header(write(tmp_path / "a.safetensors", **secret)), "me/flowers")
    assert front(text) == {
        "base_model": "timm/vit_tiny_patch16_224.augreg_in21k",
        "datasets": ["uoft-cs/cifar10"],
        "library_name": "visual-prompt-tuning",
        "metrics": ["accuracy"],
        "pipeline_tag": "image-classification",
        "tags": ["visual-prompt-tuning", "vpt-deep"],
    }
    for line in (
        "| top1 | 0.875 | test | 1234 | 4 |",
        "| top1 | 0.9062 | val | 32 | 4 |",
        "| shots | 16 |",
        "| test pictures | 1234 |",
        "| image/1/prefix | 3 | 8 |",
        "- length: 3",
        "- epochs: 7",
        r"Classes, in the order of the head: a\|b, c\_d.",
        "- image: 0123456789abcdef",
    ):
        assert line in text.splitlines(), line
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert 'vpt.pull("me/flowers")' in code
    assert len(code.splitlines()) == 3
    assert "secret" not in text  # the command holds paths of one's own machine


def test_the_card_invents_nothing(tmp_path: Path) -> None:
    text = card(Header("x.safetensors", 10, {}, {"format": 1}))
    assert front(text) == {"library_name": "visual-prompt-tuning", "tags": ["visual-prompt-tuning"]}
    assert not {"## Results", "## Protocol", "## Training"} & set(text.splitlines())
    for name, backbone in {
        "starter": {"name": "starter/vit-mini"},
        "no tag": {"name": "timm/vit_tiny_patch16_224"},
        "random": {"name": "timm/vit_tiny_patch16_224.augreg_in21k", "pretrained": False},
        "local": {"name": "timm/vit_tiny_patch16_224.augreg_in21k", "weights": "w.pth"},
    }.items():
        file = write(tmp_path / f"{name}.safetensors", backbone=backbone, protocol={"data": "photos"})
        found = card(read_header(file))
        assert not {"base_model", "datasets"} & front(found).keys(), name
        assert ("weights=FILE" in found) == (name == "local")
