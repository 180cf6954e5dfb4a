"""The state database: stages, feedback, alarms, retrainings, audit. SQLAlchemy; SQLite by default.

The schema is versioned: `open_state` brings an older database up to date and refuses a newer
one. On SQLite and on PostgreSQL writers take turns, so that rows are numbered in the order in
which they appear: who has read up to a number has missed nothing before it.
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import Cursor, OperationalError
from typing import cast

from sqlalchemy import (
    URL,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, DisconnectionError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.types import TypeDecorator

from model.errors import StoreError

STAGES = ("registered", "shadow", "canary", "champion", "retired")
HEAD_REVISION = "0002"

_MIGRATIONS = Path(__file__).parent / "migrations"

_LONGEST_WAIT_SECONDS = 10  # for other processes that hold the database
_PAUSE_SECONDS = 0.02
_WRITERS_LOCK = 0x506C756D  # "Plum", among PostgreSQL's advisory locks of this database
# A server that is gone without a word is noticed within so many seconds.
_POSTGRESQL_PATIENCE = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # milliseconds
}
_upgrading = threading.Lock()

metadata = MetaData()


class UtcTime(TypeDecorator[datetime]):
    """A time in UTC, with its time zone, whatever the database.

    SQLite forgets the zone, and PostgreSQL gives that of the session.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """As it is stored."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """As it is read."""
        if value is None or value.tzinfo is not None:
            return None if value is None else value.astimezone(UTC)
        return value.replace(tzinfo=UTC)


versions = Table(
    "versions",
    metadata,
    Column("name", String(63), nullable=False),
    Column("version", String(63), nullable=False),
    Column("stage", String(16), nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("registered_at", UtcTime, nullable=False),
    Column("stage_since", UtcTime, nullable=False),
    PrimaryKeyConstraint("name", "version"),
    CheckConstraint(f"stage in {STAGES!r}", name="stage_is_known"),
)
# One champion for a model name, whatever two operators do at the same moment. The migrations say
# the same to PostgreSQL; said here too, it would load that dialect, half a second a process.
Index(
    "one_champion",
    versions.c.name,
    unique=True,
    sqlite_where=versions.c.stage == "champion",
)

feedback = Table(
    "feedback",
    metadata,
    Column("prediction_id", String(36), nullable=False),
    Column("client", String(128), nullable=False),
    Column("labels", Text, nullable=False),  # a JSON list of class names
    Column("model", String(127), nullable=False),
    Column("received_at", UtcTime, nullable=False),
    UniqueConstraint("prediction_id", "client", name="one_per_client"),
    Index("feedback_received_at", "received_at"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("time", UtcTime, nullable=False),
    Column("action", String(32), nullable=False),
    Column("subject", String(127), nullable=False),
    Column("detail", Text, nullable=False),
)

alarms = Table(
    "alarms",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("model", String(127), nullable=False),
    Column("time", String(40), nullable=False),  # of the image that raised it, ISO 8601
    Column("stream", String(32), nullable=False),
    Column("after_images", Integer, nullable=False),
    UniqueConstraint("model", "time", name="one_alarm_at_a_time"),
)

retrainings = Table(
    "retrainings",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("model", String(63), nullable=False),  # the name
    Column("why", Text, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    Column("host", String(255), nullable=False),
    Column("process", Integer, nullable=False),
    Column(
        "process_started", String(32), nullable=False
    ),  # tells it from a later one of its number
    Column("outcome", String(16)),  # null while it runs; else challenger, failed or no labels
    Column("detail", Text, nullable=False, default=""),  # JSON: the comparison, or the error
)


def open_state(url: str) -> Engine:
    """Open the state database, creating or upgrading its schema where needed.

    Raises `StoreError` when it cannot be reached, its driver is not installed, or it was written
    by a newer Plumbline.
    """
    try:
        engine = _engine(_with_driver(make_url(url)))
        try:
            if _revision(engine) != HEAD_REVISION:
                _upgrade(engine)
        except BaseException:
            engine.dispose()
            raise
    except ModuleNotFoundError as error:
        raise StoreError(
            f"the state database {engine_name(url)} cannot be opened: its driver"
            f" {error.name} is not installed; {_how_to_install(url)}"
        ) from error
    except (ArgumentError, SQLAlchemyError, OSError, ImportError) as error:
        raise StoreError(
            f"the state database {engine_name(url)} cannot be opened: {cause_of(error)};"
            " check PLUMBLINE_STATE_URL"
        ) from error
    return engine


def _with_driver(url: URL) -> URL:
    """PostgreSQL's URL as every tool writes it means the driver that our extra brings."""
    if url.drivername in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    return url


def _how_to_install(url: str) -> str:
    if url.startswith("postgres"):
        return (
            "install it: pip install 'plumbline[postgres]', and let PLUMBLINE_STATE_URL begin with"
            " postgresql://"
        )
    return "valid in PLUMBLINE_STATE_URL are sqlite:///FILE and postgresql://USER@HOST/DATABASE"


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        patience = {k: its for k, its in _POSTGRESQL_PATIENCE.items() if k not in url.query}
        # A connection is asked whether it still stands before it is used: the server may have
        # been away in the meantime.
        engine = create_engine(url, connect_args=patience, pool_pre_ping=True)
        _prepare_postgresql(engine)
        return engine
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
    return engine


def cause_of(error: Exception) -> str:
    """What the database itself said, in a line."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def engine_name(url: str) -> str:
    """A database URL without its password, for messages."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def record(connection: Connection, action: str, subject: str, detail: str = "") -> None:
    """Append a line to the audit, in the caller's transaction."""
    connection.execute(
        audit.insert().values(time=datetime.now(UTC), action=action, subject=subject, detail=detail)
    )


def write_transaction(state: Engine) -> AbstractContextManager[Connection]:
    """Begin a transaction that writes; it waits for its turn at once, not at its first write."""
    return state.execution_options(writes=True).begin()


def _prepare_sqlite(engine: Engine) -> None:
    file = engine.url.database
    if file and file != ":memory:" and "uri" not in engine.url.query:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        _watch_file(engine, Path(file))

    @event.listens_for(engine, "connect")
    def _configure(connection: object, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]
        cursor.execute(f"PRAGMA busy_timeout={1000 * _LONGEST_WAIT_SECONDS}")
        _write_ahead(cursor)
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _take_the_write_lock_at_once(connection: Connection) -> None:
        # A transaction that reads first and writes later would fail instead of waiting.
        if connection.get_execution_options().get("writes"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")


def _watch_file(engine: Engine, path: Path) -> None:
    """Fail where the file has been removed, and open anew where there is another in its place.

    SQLite itself would go on writing to a removed file, which nobody reads again, and make an empty
    one for the next connection.
    """
    was_there = False

    @event.listens_for(engine, "do_connect")
    def _make_no_second_file(*_: object) -> None:
        if was_there and not path.exists():
            raise OperationalError(f"{path} is gone; put it back from a backup")

    @event.listens_for(engine, "connect", insert=True)
    def _remember(_: object, entry: ConnectionPoolEntry) -> None:
        nonlocal was_there
        was_there = True
        entry.info["file"] = _identity(path)

    @event.listens_for(engine, "checkout")
    def _compare(_: object, entry: ConnectionPoolEntry, __: object) -> None:
        if _identity(path) != entry.info["file"]:
            raise DisconnectionError(f"{path} is another file than before")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _prepare_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "begin")
    def _wait_for_the_turn(connection: Connection) -> None:
        # What reads first and writes later would otherwise build on what another is changing.
        if connection.get_execution_options().get("writes"):
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LONGEST_WAIT_SECONDS}s'")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS_LOCK})")


def _write_ahead(cursor: Cursor) -> None:
    """Switch to a write-ahead log.

    Of several processes that make one new database SQLite lets all but the first fail at once here,
    whatever the busy timeout.
    """
    until = time.monotonic() + _LONGEST_WAIT_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(_PAUSE_SECONDS)


def _revision(engine: Engine) -> str | None:
    if not inspect(engine).has_table("alembic_version"):
        return None
    with engine.connect() as connection:
        query = select(text("version_num")).select_from(text("alembic_version"))
        return cast(str | None, connection.scalar(query))


def _upgrade(engine: Engine) -> None:
    # Imported here: the service needs no migration tool when the schema is up to date.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    found = _revision(engine)
    if found is not None and found not in known:
        raise StoreError(
            f"the state database {engine.url.render_as_string()} has schema {found};"
            f" this Plumbline knows up to {HEAD_REVISION}. Use a newer Plumbline"
        )
    # Alembic's context is global to the process; the write lock holds off other processes, whose
    # upgrade then finds nothing left to do.
    with _upgrading, write_transaction(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
