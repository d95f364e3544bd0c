"""Prompt files to and from the Hugging Face hub, with a card made from what the file says of itself."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCardData, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from jinja2 import ChainableUndefined, Environment

from vpt.header import BLANK, BadPromptFile, Header, read_header, sealed

__all__ = ["FILE", "HubError", "card", "pull", "push"]

FILE = "prompts.safetensors"
LOGIN = "Log in with `hf auth login`, or put a token into HF_TOKEN (https://huggingface.co/settings/tokens)."
NETWORK: Any = HfHubHTTPError.__bases__[
    0
]  # of the client that huggingface_hub uses: httpx now, requests once
# the hub's own names, where a data set has one that is beyond doubt
DATASETS = {
    "torchvision:CIFAR10": "uoft-cs/cifar10",
    "torchvision:CIFAR100": "uoft-cs/cifar100",
    "torchvision:FashionMNIST": "zalando-datasets/fashion_mnist",
    "torchvision:Food101": "ethz/food101",
    "torchvision:MNIST": "ylecun/mnist",
    "torchvision:SVHN": "ufldl-stanford/svhn",
}
METRICS = {"top1": "accuracy", "f1": "f1"}  # ours to the hub's
TRAIN = ("optimizer", "lr", "weight_decay", "schedule", "warmup", "epochs", "batch_size", "precision")
MAX_CLASSES = 100  # listed in a card


class HubError(OSError):
    """The hub did not do what was asked; the message says what to do."""


def push(
    path: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload prompts with vpt",
) -> str:
    """Upload a prompt file as ``prompts.safetensors`` with a card as ``README.md``, in one commit.

    What goes up names no folder of this machine: the command that trained is left out, and of a local checkpoint the
    file's name is kept. The file here stays as it is.

    repo: USER/NAME, made where it is not there.  private: of a repository that is made now.
    token: else the one that ``hf auth login`` or HF_TOKEN left.
    Returns the address. Raises FileNotFoundError or BadPromptFile before anything is sent, and HubError.
    """
    header = read_header(path)
    if header.about.get("kind") == "baseline":
        raise BadPromptFile(
            f"{path} holds the weights of the baseline {_method(header)!r} and is no prompt set. "
            "Push the file of a method that learns rows (vpt methods lists them)."
        )
    _check_name(repo)
    if not (token or get_token()):
        raise HubError(f"pushing to {repo} needs a token, and there is none. {LOGIN}")
    api = HfApi(token=token)
    header, data = _public(header)
    with _explained(repo, "write to it"):
        full = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
        files = {FILE: data, "README.md": card(header, full).encode()}
        operations = [CommitOperationAdd(name, data) for name, data in files.items()]
        api.create_commit(full, operations, commit_message=message)
    return f"{api.endpoint}/{full}"


def _public(header: Header) -> tuple[Header, bytes]:
    """The file without what tells of the machine it was made on; its bytes as they are where it tells nothing."""
    data, about = Path(header.path).read_bytes(), dict(header.about)
    if train := _mapping(about, "train"):
        about["train"] = {k: v for k, v in train.items() if k != "command"}
    if weights := _mapping(about, "backbone").get("weights"):
        name = PureWindowsPath(str(weights)).name  # cuts at both kinds of slash
        about["backbone"] = {**about["backbone"], "weights": name}
    if about == header.about:
        return header, data
    end = 8 + int.from_bytes(data[:8], "little")
    tensors = json.loads(data[8:end])
    tensors["__metadata__"] = {**tensors["__metadata__"], "vpt": json.dumps(about), "check": BLANK}
    text = json.dumps(tensors, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at multiples of 8 bytes
    data = sealed(len(text).to_bytes(8, "little") + text + data[end:])
    return replace(header, about=about, bytes=len(data)), data


def pull(
    repo: str,
    *,
    filename: str = FILE,
    revision: str | None = None,
    out: str | os.PathLike[str] | None = None,
    token: str | None = None,
) -> Path:
    """Fetch a prompt file and write it to ``out``, by default NAME.safetensors of USER/NAME in this folder.

    revision: a branch, tag or commit.  token: for private repositories.
    The file is checked first: what was at ``out`` is replaced by a whole prompt file or stays.
    Raises BadPromptFile and HubError. Without a network a copy that was fetched before is used.
    """
    _check_name(repo)
    out = Path(f"{repo.rpartition('/')[2]}.safetensors" if out is None else out)
    if out.is_dir():
        raise ValueError(f"out={str(out)!r} is a folder. Give the name of a file.")
    with _explained(repo, "read it"):
        fetched = HfApi(token=token).hf_hub_download(repo, filename, revision=revision)
    try:
        read_header(fetched)
    except BadPromptFile as error:
        raise BadPromptFile(f"{repo} has no prompt set as {filename}: {error}") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(fetched, part)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return out


def _check_name(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is no name of a repository: {error} Give USER/NAME.") from None


@contextmanager
def _explained(repo: str, doing: str) -> Iterator[None]:
    """Turns what the hub says into what to do; other errors pass."""
    try:
        yield
    except (NETWORK, ConnectionError, LocalEntryNotFoundError) as error:
        raise HubError(_advice(error, repo, doing)) from error


def _advice(error: Exception, repo: str, doing: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated. Ask for access on its page, then log in. {LOGIN}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no such revision. Give a branch, a tag or a commit of it, or leave revision out."
    if isinstance(error, LocalEntryNotFoundError):  # is an EntryNotFoundError too
        return f"the hub cannot be reached, and no copy of {repo} was fetched before. Check the network."
    if isinstance(error, EntryNotFoundError):
        return f"{repo} is there, but not that file. Its page lists the files; give one as filename."
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no repository {repo}, or it is private. Check the name. If it is private: {LOGIN}"
    if status in (401, 403):
        return f"the hub does not let this token {doing} ({repo}, status {status}). {LOGIN}"
    if status is not None:
        said = getattr(error, "server_message", None) or str(error).splitlines()[0]
        return f"the hub refused {repo} with status {status}: {said}"
    return f"the hub cannot be reached ({error}). Check the network, and that HF_HUB_OFFLINE is not set."


def card(header: Header, repo: str = "USER/NAME") -> str:
    """README.md of a repository that holds the file: YAML for the hub, use, results, protocol, content.

    Everything comes from the file; what it does not say is left out.
    """
    about = header.about
    scalars = {k: v for k, v in _mapping(about, "protocol").items() if not isinstance(v, dict)}
    train = _mapping(about, "train")
    environment = Environment(  # written for Markdown: text is made safe by _cell
        autoescape=False, undefined=ChainableUndefined, finalize=_cell, trim_blocks=True, lstrip_blocks=True
    )
    front = _front(header)
    body = environment.from_string(TEMPLATE).render(
        about=about,
        header=header,
        repo=repo,
        method=_method(header),
        options=_mapping(about, "method", "options"),
        backbone=_mapping(about, "backbone"),
        classes=(about.get("classes") or [])[:MAX_CLASSES],
        more=max(0, len(about.get("classes") or []) - MAX_CLASSES),
        protocol={
            **scalars,
            **{f"{k} pictures": v for k, v in _mapping(about, "protocol", "counts").items()},
        },
        train={k: train[k] for k in TRAIN if train.get(k) is not None},
    )
    return f"---\n{front}\n---\n\n{body}"


def _front(header: Header) -> str:
    """The YAML that the hub reads."""
    about, backbone = header.about, _mapping(header.about, "backbone")
    family, _, name = str(backbone.get("name")).partition("/")
    # timm's weights lie on the hub under this name; a local checkpoint or random weights do not
    on_hub = family == "timm" and "." in name and not backbone.get("weights")
    known = on_hub and backbone.get("pretrained", True)
    data = DATASETS.get(str(_mapping(about, "protocol").get("data")))
    found = [m.get("name") for m in about.get("metrics") or [] if isinstance(m, dict)]
    metrics = list(dict.fromkeys(METRICS[n] for n in found if n in METRICS))
    return ModelCardData(
        library_name="visual-prompt-tuning",
        pipeline_tag="image-classification" if about.get("task") == "classify" else None,
        base_model=f"{family}/{name}" if known else None,
        datasets=[data] if data else None,
        metrics=metrics or None,
        tags=["visual-prompt-tuning", *([_method(header)] if _method(header) else [])],
    ).to_yaml()


def _mapping(about: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A mapping inside the metadata; empty where the file has none there."""
    found: Any = about
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _method(header: Header) -> str:
    return str(_mapping(header.about, "method").get("name") or "")


def _cell(value: Any) -> Any:
    """A value as text that breaks neither a table nor the page; jinja asks for every expression."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(_cell(v)) for v in value)
    if hasattr(value, "__html__"):  # marked safe, since it stands in code, where nothing is escaped
        return value
    text = " ".join(str(value).split())
    for mark in ("\\", "|", "`", "<", "[", "*", "_"):
        text = text.replace(mark, f"\\{mark}")
    return text


TEMPLATE = """\
# {{ method or "Prompts" }} for {{ backbone.name or "a frozen network" }}

{{ "{:,}".format(header.parameters) }} learned numbers ({{ "{:.1f}".format(header.bytes / 1000) }} kB) for \
the frozen network {{ backbone.name }}. The network itself is not in this repository.
{% if backbone.weights %}

They were learned on a local checkpoint of it, which `load_prompts` takes as its second argument: \
`vpt.load(NAME, weights=FILE)`.
{% endif %}

```python
import vpt
tuned = vpt.load_prompts(vpt.pull("{{ repo | safe }}"))
print(tuned.predict("picture.jpg"))
```

{% if about.metrics %}
## Results

| metric | value | split | pictures | seed |
| --- | --: | --- | --: | --: |
{% for m in about.metrics %}
| {{ m.name }} | {{ m.value }} | {{ m.split }} | {{ m.count }} | {{ m.seed }} |
{% endfor %}

{% endif %}
{% if protocol %}
## Protocol

| | |
| --- | --- |
{% for name, value in protocol.items() if value is not none %}
| {{ name }} | {{ value }} |
{% endfor %}

{% endif %}
## What the file holds

{% if method %}
Method: {{ method }}{% if about.method.paper %} (arXiv {{ about.method.paper }}){% endif %}.

{% endif %}
{% for name, value in options.items() %}
- {{ name }}: {{ value }}
{% endfor %}

{% if about.sites %}
| rows at | rows | width |
| --- | --: | --: |
{% for site in about.sites %}
| {{ site.tower }}/{{ site.stage }}/{{ site.slot }} | {{ site.n }} | {{ site.width }} |
{% endfor %}

{% endif %}
{% if classes %}
Classes, in the order of the head: {{ classes }}{% if more %} and {{ more }} more{% endif %}.

{% endif %}
{% if backbone.fingerprints %}
Fingerprints of the frozen towers:
{% for tower, print in backbone.fingerprints.items() %}
- {{ tower }}: {{ print }}
{% endfor %}

{% endif %}
{% if train %}
## Training

{% for name, value in train.items() %}
- {{ name }}: {{ value }}
{% endfor %}

{% endif %}
{% if about.created %}
Written {{ about.created.date }} by vpt {{ about.created.vpt }}.
{% endif %}
"""
