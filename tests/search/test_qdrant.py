"""Against the client's own local mode, in memory and in a folder, and a server that only refuses."""

import json
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from store_case import agrees, operations, replay, units

pytest.importorskip("qdrant_client")
from qdrant_client import models

from vpt.search import qdrant
from vpt.search.qdrant import QdrantVectors, open_vectors
from vpt.search.vectors import Vectors


@pytest.fixture
def store() -> Iterator[QdrantVectors]:
    made = open_vectors("qdrant::memory:/pictures", 16)
    yield made
    made.close()


def test_it_is_a_store_of_halves_by_inner_product(store: QdrantVectors) -> None:
    assert isinstance(store, Vectors)
    kept = store._client.get_collection("pictures").config.params.vectors
    assert (kept.size, kept.distance, kept.datatype) == (16, models.Distance.DOT, models.Datatype.FLOAT16)


@settings(max_examples=40, deadline=None)
@given(happened=operations)
def test_it_stays_what_a_dictionary_would_be(happened: list) -> None:
    store = open_vectors("qdrant::memory:/pictures", 8)
    replay(store, happened)
    store.close()


def test_nothing_in_is_nothing_out(store: QdrantVectors) -> None:
    store.add([], units(0, 16))
    assert (len(store), store.remove([]), store.remove(["a\0"])) == (0, 0, 0)
    assert store.search(units(2, 16), 3) == [[], []]
    assert store.search(units(0, 16), 3) == []


def test_what_does_not_fit_one_request_goes_in_several(
    store: QdrantVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdrant, "BATCH", 7)
    x = units(50, 16)
    names = [str(i) for i in range(50)]
    store.add(names, x)
    assert [hits[0].id for hits in store.search(x, 1)] == names
    assert store.remove([*names[:20], *names[:20], "strange"]) == 20
    agrees(store, dict(zip(names[20:], x[20:], strict=True)), x[:3], 40)


def test_a_folder_keeps_it_and_serves_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"qdrant:{tmp_path}/kept/pictures"
    x = units(12, 8)
    store = open_vectors(url, 8)
    store.add([f"{i}.jpg" for i in range(12)], x)
    store.add(["0.jpg"], x[11:])
    assert store.remove(["11.jpg"]) == 1
    with pytest.raises(BlockingIOError, match=r"kept is open in another process, .* Wait until"):
        open_vectors(url, 8)
    store.close()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="holds vectors of width 8, and these are 9 wide"):
        open_vectors("qdrant:kept/pictures", 9)
    again = open_vectors("qdrant:kept/pictures", 8)  # the refused one has let go of the folder
    agrees(again, {f"{i}.jpg": x[i or 11] for i in range(11)}, x[:3], 4)
    again.close()


ADDS = """
import sys
import numpy as np
from vpt.search.qdrant import open_vectors
store = open_vectors(sys.argv[1], 8)
store.add(["old"], np.eye(8, dtype=np.float32)[:1])
print("ready", flush=True)
store.add([f"new{i}" for i in range(2000)], np.eye(8, dtype=np.float32)[np.arange(2000) % 8])
"""


def test_a_kill_while_adding_leaves_a_collection_that_the_same_add_completes(tmp_path: Path) -> None:
    url = f"qdrant:{tmp_path}/pictures"
    with subprocess.Popen([sys.executable, "-c", ADDS, url], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "ready\n"
        killed.kill()
    store = open_vectors(url, 8)
    assert 1 <= len(store) < 2001
    store.add(["old", "new0", "mine"], np.eye(8, dtype=np.float32)[:3])
    assert {h.id for h in store.search(np.eye(8, dtype=np.float32)[2:3], 1)[0]} == {"mine"}
    store.close()


def test_other_collections_are_refused_and_left_alone(store: QdrantVectors) -> None:
    store.add(["a"], units(1, 16))
    store.width = 8
    with pytest.raises(ValueError, match="holds vectors of width 16, and these are 8 wide"):
        store._make()
    far = models.VectorParams(size=8, distance=models.Distance.EUCLID)
    named = {"image": models.VectorParams(size=8, distance=models.Distance.DOT)}
    for other, kind in (("far", far), ("named", named)):
        store._client.create_collection(other, vectors_config=kind)
        store.name = other
        with pytest.raises(ValueError, match=f"{other} at :memory: holds vectors of another kind"):
            store._make()
    store.name, store.width = "pictures", 16
    assert len(store) == 1


def test_what_is_asked_wrongly_is_said(store: QdrantVectors) -> None:
    with pytest.raises(ValueError, match=r"shape \[1, 8\], and \[n, 16\] is wanted"):
        store.search(units(1, 8), 1)
    with pytest.raises(ValueError, match="a search for 0 neighbours"):
        store.search(units(1, 16), 0)
    with pytest.raises(ValueError, match="'a' is given twice"):
        store.add(["b", "a", "a"], units(3, 16))
    assert len(store) == 0
    with pytest.raises(ValueError, match="0 wide, wanted 1 or more"):
        open_vectors("qdrant::memory:/pictures", 0)


@pytest.mark.parametrize("name", ["..", ".hidden", "a b", "ä", "a" * 256])
def test_a_collection_that_cannot_be_named_so_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no collection's name"):
        open_vectors(f"qdrant::memory:/{name}", 8)


@pytest.mark.parametrize(
    "url",
    ["qdrant:", "qdrant:pictures", "qdrant:/pictures", "qdrant:http://host:6333", "http://host/pictures"],
)
def test_an_address_says_where_and_which(url: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{url!r} does not say where, and which collection")):
        open_vectors(url, 8)


class Refuses(BaseHTTPRequestHandler):
    """A server that knows two collections: one wants a key, the other says what is wrong."""

    keys: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.keys.append(self.headers.get("api-key"))
        self.rfile.read(int(self.headers.get("content-length") or 0))
        status = 401 if "secret" in self.path else 422
        words = json.dumps({"status": {"error": "no such luck"}}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(words)))
        self.end_headers()
        self.wfile.write(words)

    def log_message(self, *_: object) -> None:
        """Says nothing on the terminal."""


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")  # which users should see
def test_a_server_that_refuses_is_quoted(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"Qdrant at http://127.* refused \(422 .*no such luck"):
        open_vectors(f"qdrant:{server}/pictures", 8)
    monkeypatch.setenv("QDRANT_API_KEY", "wrong")
    with pytest.raises(PermissionError, match=r"\(401 .*no such luck.*Set QDRANT_API_KEY to a key"):
        open_vectors(f"qdrant:{server}/secret", 8)
    assert Refuses.keys == [None, "wrong"]


def test_no_server_is_said() -> None:
    with pytest.raises(
        ConnectionError, match=r"Qdrant at http://127\.0\.0\.1:9 does not answer .* Start the server"
    ):
        open_vectors("qdrant:http://127.0.0.1:9/pictures", 8)


def test_without_the_extra_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(ImportError, match=r"pip install 'visual-prompt-tuning\[qdrant\]'"):
        runpy.run_path(qdrant.__file__)
