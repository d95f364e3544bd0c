"""Unit vectors in PostgreSQL, in half precision, under pgvector's HNSW graph (arXiv 1603.09320).

A table holds ``id`` (text, the primary key) and ``vector`` (halfvec). It may live beside a company's other tables, be
joined with them, and be read by many processes at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np

from vpt.search.checks import checked, storable
from vpt.search.vectors import Hit

try:
    import psycopg
    from pgvector import HalfVector
    from pgvector.psycopg import register_vector
    from psycopg import sql
    from psycopg.conninfo import conninfo_to_dict
except ImportError as error:
    raise ImportError(
        f"vectors in PostgreSQL need psycopg and pgvector, and {error.name} is not installed. "
        "Install them: pip install 'visual-prompt-tuning[pgvector]'."
    ) from error

__all__ = ["PgVectors", "open_vectors"]

WIDEST = 4000  # what pgvector's HNSW takes in half precision
OLDEST = (0, 8)  # the first pgvector whose index goes on until enough rows are found (iterative scan)
# Below this many rows no index is made: a scan of 10,000 x 256 took 8 ms a query and misses nothing.
EXACT = 10_000
# The index is made when somebody first searches a table above that, and not with the table: 10,000 x 256 in batches of
# 1,000 took 8 s so (load 0.6 s, build 7.6 s) and 31 s into an index that was there. Same recall, same time a query.
EF_SEARCH = (
    100  # candidates kept while searching; pgvector's 40 is thin for galleries of many near neighbours
)
MOST_EF = 1000  # pgvector's limit; beyond it the iterative scan takes over
BATCH = 1024  # queries in one statement
LOCK = 0x767074  # "vpt": whoever makes a table or an index holds this advisory lock


class PgVectors:
    """Unit vectors by id in one table, which is made where it is missing.

    Each add, remove or search is one transaction: a kill leaves the table as it was before the call. Several processes
    may read and write at once. The first search of a table of 10,000 vectors or more builds the HNSW index, which takes
    minutes for millions; the server's own ``maintenance_work_mem`` decides how fast.
    """

    def __init__(self, url: str, table: str, width: int) -> None:
        """Connect, and make the extension and the table where they are missing.

        url: ``postgresql://user@host:port/database``. Leave the password to PGPASSWORD or ~/.pgpass.
        table: a plain name, or ``schema.name``: letters, digits and "_", at most 63 each.  width: channels, up to 4000.

        Raises:
            ValueError: a name or width that cannot be used, a table of another width or other columns, an old pgvector.
            ConnectionError: no server answers, or it lets this user not in.
            PermissionError: the table or the extension is missing and this user may not make it.
        """
        if not 1 <= width <= WIDEST:
            raise ValueError(
                f"vectors of width {width} cannot be indexed by pgvector, which takes 1 to {WIDEST}. Use a FAISS index."
            )
        if not re.fullmatch(r"[A-Za-z_]\w{0,62}(\.[A-Za-z_]\w{0,62})?", table, re.ASCII):
            raise ValueError(
                f"{table!r} is no table name. Use letters, digits and '_' (at most 63), as NAME or SCHEMA.NAME."
            )
        self.width, self.name, self._where = width, table, _shown(url)
        self._connection = _connect(url)
        self._settled = False  # whether the table has its index, or may not have one
        try:
            with self._asking():
                self._table = self._opened()
                register_vector(self._connection)
        except BaseException:
            self._connection.close()
            raise

    def __len__(self) -> int:
        """How many vectors the table holds now, by whomever they were added."""
        with self._asking():
            row = self._connection.execute(self._sql("SELECT count(*) FROM {t}")).fetchone()
        assert row is not None
        return row[0]

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Put vectors [n, width] under their ids; a known id is replaced. All of them or none.

        Raises ValueError for another shape, values that are not finite, a length other than 1, or an id that repeats or
        that no text column takes.
        """
        halves = checked(vectors, self.width, ids)
        if not len(ids):
            return
        with self._asking(), self._connection.transaction():
            self._connection.execute(
                self._sql("CREATE TEMP TABLE vpt_arriving (id text, vector halfvec({w})) ON COMMIT DROP")
            )
            command = "COPY pg_temp.vpt_arriving FROM STDIN (FORMAT BINARY)"
            with self._connection.cursor() as cursor, cursor.copy(command) as copy:
                copy.set_types(["text", "halfvec"])
                for name, half in zip(ids, halves, strict=True):
                    copy.write_row((name, HalfVector(half)))
            self._connection.execute(  # in one order, so that two who add the same ids wait and do not deadlock
                self._sql(
                    "INSERT INTO {t} (id, vector) SELECT id, vector FROM pg_temp.vpt_arriving ORDER BY id "
                    "ON CONFLICT (id) DO UPDATE SET vector = excluded.vector"
                )
            )

    def remove(self, ids: Sequence[str]) -> int:
        """Take ids out; an unknown one is passed over. Returns how many were there."""
        known = [name for name in ids if storable(name)]  # what cannot be stored is not there
        with self._asking():
            return self._connection.execute(self._sql("DELETE FROM {t} WHERE id = ANY(%s)"), [known]).rowcount

    def search(self, queries: np.ndarray, k: int) -> list[list[Hit]]:
        """The k nearest of each query [q, width], best first; fewer only where the table holds fewer.

        Scores are inner products of half-precision vectors: within 1e-3 of float32's. Raises ValueError for another
        shape or a k below 1.
        """
        if k < 1:
            raise ValueError(f"a search for {k} neighbours finds nothing. Ask for k of 1 or more.")
        halves = checked(queries, self.width)
        with self._asking():
            self._settle()
            found: list[list[Hit]] = []
            for start in range(0, len(halves), BATCH):
                found += self._nearest(halves[start : start + BATCH], k, exact=False)
            # A graph may lose its way among removed rows, or end at pgvector's own limits: what is short is scanned.
            short = [i for i, hits in enumerate(found) if len(hits) < k]
            if short and len(self) > min(len(found[i]) for i in short):
                for start in range(0, len(short), BATCH):
                    batch = short[start : start + BATCH]
                    for i, hits in zip(batch, self._nearest(halves[batch], k, exact=True), strict=True):
                        found[i] = hits
        return found

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()

    def _nearest(self, halves: np.ndarray, k: int, exact: bool) -> list[list[Hit]]:
        """One statement for a batch [b, width]; exact: by scanning every row."""
        query = self._sql(
            "SELECT q.n, hit.id, hit.score FROM unnest(%b::halfvec[]) WITH ORDINALITY AS q(v, n) CROSS JOIN LATERAL "
            "(SELECT id, -(vector <#> q.v) AS score FROM {t} ORDER BY vector <#> q.v LIMIT %s) AS hit "
            "ORDER BY q.n, hit.score DESC, hit.id"
        )
        options = {
            "hnsw.ef_search": str(min(max(k, EF_SEARCH), MOST_EF)),
            "hnsw.iterative_scan": "strict_order",
        }
        with self._connection.transaction():
            for option, value in ({"enable_indexscan": "off"} if exact else options).items():
                self._connection.execute("SELECT set_config(%s, %s, true)", [option, value])
            rows = self._connection.execute(query, [[HalfVector(v) for v in halves], k]).fetchall()
        hits: list[list[Hit]] = [[] for _ in halves]
        for n, name, score in rows:
            hits[n - 1].append(Hit(name, score))
        return hits

    def _settle(self) -> None:
        """Build the index where the table has grown past a quick scan and has none."""
        if self._settled:
            return
        beyond = self._sql("SELECT EXISTS (SELECT FROM {t} OFFSET %s LIMIT 1)")
        (grown,) = self._connection.execute(beyond, [EXACT - 1]).fetchone() or (False,)
        if not grown:
            return
        made = (
            "SELECT count(*) FROM pg_index JOIN pg_class c ON c.oid = indexrelid JOIN pg_am a ON a.oid = c.relam "
            "WHERE a.amname = 'hnsw' AND indrelid = to_regclass(%s)"
        )
        try:
            with self._connection.transaction():
                self._connection.execute(
                    "SELECT pg_advisory_xact_lock(%s)", [LOCK]
                )  # one builds, others wait
                (count,) = self._connection.execute(made, [self._table.as_string(None)]).fetchone() or (0,)
                if not count:
                    self._connection.execute(
                        self._sql("CREATE INDEX ON {t} USING hnsw (vector halfvec_ip_ops)")
                    )
                    self._connection.execute(self._sql("ANALYZE {t}"))
        except psycopg.errors.InsufficientPrivilege:
            pass  # one who may only read scans
        self._settled = True

    def _opened(self) -> sql.Identifier:
        """The table with its schema, made where it was missing."""
        have = self._columns()
        if not have:
            with self._connection.transaction():
                self._connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
                self._extend()
                self._connection.execute(
                    sql.SQL(
                        "CREATE TABLE IF NOT EXISTS {} (id text PRIMARY KEY, vector halfvec({}) NOT NULL)"
                    ).format(sql.Identifier(*self.name.split(".")), sql.Literal(self.width))
                )
            have = self._columns()
        kinds = {column: kind for _, _, column, kind in have}
        if kinds.get("id") != "text" or not kinds.get("vector", "").startswith("halfvec("):
            words = ", ".join(f"{column} {kind}" for column, kind in kinds.items())
            raise ValueError(
                f"the table {self.name} in {self._where} holds something else ({words}), where vectors are kept as "
                "id text, vector halfvec. Choose another table name."
            )
        if (width := int(kinds["vector"][len("halfvec(") : -1])) != self.width:
            raise ValueError(
                f"the table {self.name} in {self._where} holds vectors of width {width}, and these are {self.width} "
                "wide: another model made it. Choose another table name, or the model that it was made with."
            )
        return sql.Identifier(have[0][0], have[0][1])

    def _columns(self) -> list[tuple[str, str, str, str]]:
        """Schema, table, column and type of every column; empty where there is no such table."""
        return self._connection.execute(
            "SELECT nspname, relname, attname, format_type(atttypid, atttypmod) FROM pg_attribute "
            "JOIN pg_class c ON c.oid = attrelid JOIN pg_namespace n ON n.oid = relnamespace "
            "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            [sql.Identifier(*self.name.split(".")).as_string(None)],
        ).fetchall()

    def _extend(self) -> None:
        """The extension, in a version that has what we use."""
        try:
            self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except psycopg.errors.InsufficientPrivilege:
            raise PermissionError(
                f"the database {self._where} has no pgvector, and this user may not add it. Ask its owner to run "
                "CREATE EXTENSION vector there, then try again."
            ) from None
        except psycopg.Error as error:
            raise ValueError(
                f"the server of {self._where} has no pgvector ({_words(error)}). Install it on the server "
                "(https://github.com/pgvector/pgvector), or use a FAISS or Qdrant index."
            ) from None
        asked = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
        (version,) = self._connection.execute(asked).fetchone() or ("0.0",)
        if tuple(int(n) for n in version.split(".")[:2]) < OLDEST:
            raise ValueError(
                f"the database {self._where} has pgvector {version}, and {'.'.join(map(str, OLDEST))} or later is "
                "needed. Update the package on the server, then run ALTER EXTENSION vector UPDATE."
            )

    def _sql(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(t=getattr(self, "_table", None), w=sql.Literal(self.width))

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """The database's errors in our words."""
        try:
            yield
        except psycopg.errors.InsufficientPrivilege as error:
            raise PermissionError(
                f"{self._where} does not let this user ({_words(error)}). Ask its owner to GRANT that."
            ) from error
        except psycopg.Error as error:
            if self._connection.closed:
                raise ConnectionError(
                    f"{self._where} broke off ({_words(error)}). Nothing of this call was kept: open it again and "
                    "repeat."
                ) from error
            raise ValueError(
                f"{self._where} refused ({_words(error)}). The table {self.name} is as it was before this call."
            ) from error


def open_vectors(url: str, width: int) -> PgVectors:
    """``postgresql://user@host:port/database?table=NAME``: other parameters are PostgreSQL's own (sslmode, ...).

    Raises ValueError for an address without a table, and what :class:`PgVectors` raises.
    """
    parts = urlsplit(url)
    given = parse_qsl(parts.query)
    table = dict(given).get("table")
    if not table:
        raise ValueError(
            f"{_shown(url)} does not say which table. Add it: postgresql://user@host/database?table=NAME."
        )
    rest = urlencode([(key, value) for key, value in given if key != "table"])
    return PgVectors(urlunsplit(parts._replace(query=rest)), table, width)


def _connect(url: str) -> psycopg.Connection:
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise ValueError(
            f"{_shown(url)} is no address of a database ({_words(error)}). Write postgresql://user@host/database."
        ) from None
    try:
        return psycopg.connect(url, autocommit=True, connect_timeout=given.get("connect_timeout") or 10)
    except psycopg.OperationalError as error:
        raise ConnectionError(
            f"no connection to {_shown(url)} ({_words(error)}). Start the server, or correct host, user and database; "
            "a password is read from PGPASSWORD or ~/.pgpass."
        ) from None


def _shown(url: str) -> str:
    """The address without user, password and parameters, for messages."""
    return re.sub(r"//[^/?#]*@", "//", url.split("?")[0])


def _words(error: psycopg.Error) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
