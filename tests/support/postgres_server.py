"""PostgreSQL for tests: a real server of their own, that they may kill, freeze and restart."""

import functools
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
from local_server import LocalServer, ServerError

USER = "midstream"

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # none at all
    # What SIGKILL leaves in the page cache is as good as on disk: only a crash of the machine
    # would lose it. What is acknowledged has to be written by then, and a page that SIGKILL
    # tears is made whole from the log.
    "fsync": "off",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # In the folder, which is removed also after SIGKILL; /dev/shm would keep it.
    "dynamic_shared_memory_type": "mmap",
    "shared_buffers": "16MB",
}


@functools.cache
def binaries() -> Path | None:
    """Return the folder with initdb and postgres: on PATH, or where Debian has its newest."""
    found = shutil.which("initdb")
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    newest = sorted(debian, key=lambda path: [int(n) for n in re.findall(r"\d+", path.parent.name)])
    folders = [*([Path(found).parent] if found else []), *reversed(newest)]
    return next(
        (f for f in folders if all(os.access(f / p, os.X_OK) for p in ("initdb", "postgres"))),
        None,
    )


def missing() -> str | None:
    """Say why PostgreSQL cannot run here; None if it can."""
    if binaries() is None:
        return "no initdb and postgres on PATH or in /usr/lib/postgresql (Debian: `postgresql`)"
    return None


def account() -> pwd.struct_passwd | None:
    """Return the account that the server runs under if we are root, as which it refuses to run."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


class Postgres(LocalServer):
    """PostgreSQL on loopback, without a password, in a folder that goes with it.

    Clients are the role `USER`, which may make databases and is no superuser: nobody who finds the
    port gets at more than these databases. `settings` are PostgreSQL's: ``{"fsync": "on"}``.
    """

    ending = signal.SIGQUIT  # at once, and its shared memory is given back

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._settings = {**SETTINGS, **(settings or {})}
        self.data = self.folder / "data"

    @property
    def url(self) -> str:
        """The database `postgres`; those of `database` are for tests."""
        return self._url("postgres")

    def database(self) -> str:
        """Create an empty database; return its URL."""
        name = f"test_{secrets.token_hex(6)}"
        self._execute(f'CREATE DATABASE "{name}"')
        return self._url(name)

    def drop(self, url: str) -> None:
        """Drop a database, whoever is connected to it."""
        name = url.rpartition("/")[2]
        self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def prepare(self) -> None:
        if why := missing():
            raise ServerError(f"PostgreSQL cannot run here: {why}")
        self.data.mkdir(mode=0o700)
        if (user := account()) is not None:
            self.folder.chmod(0o711)
            os.chown(self.data, user.pw_uid, user.pw_gid)
        self._once(
            [self._binary("initdb"), "--no-sync", "--no-locale", "--encoding=UTF8", "--auth=trust",
             "--username=postgres", f"--pgdata={self.data}"]
        )  # fmt: skip
        self._once(
            [self._binary("postgres"), "--single", "-F", "-D", str(self.data), "postgres"],
            f"CREATE ROLE {USER} LOGIN CREATEDB\n",
        )
        (self.data / "pg_hba.conf").write_text(f"host all {USER} 127.0.0.1/32 trust\n")

    def command(self) -> list[str]:
        settings = {**self._settings, "port": self.port}
        given = [f"--{name}={value}" for name, value in settings.items()]
        return [self._binary("postgres"), "-D", str(self.data), *given]

    def options(self) -> dict[str, Any]:
        owner: dict[str, Any] = {}
        if (user := account()) is not None:
            owner = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        # Its language is that of the errors that are looked for; its account may not enter ours.
        return {"cwd": self.data, "env": {**os.environ, "LC_ALL": "C"}, **owner}

    def answers(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        if len(lines) < 8 or lines[0] != str(self.pid) or lines[7].strip() != "ready":
            return False
        try:
            self._execute("SELECT")
        except psycopg.OperationalError:
            return False
        return True

    def _url(self, database: str) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True, connect_timeout=30) as connection:
            connection.execute(statement)

    def _binary(self, name: str) -> str:
        folder = binaries()
        assert folder is not None
        return str(folder / name)

    def _once(self, command: list[str], told: str = "") -> None:
        done = subprocess.run(
            command, input=told, capture_output=True, text=True, check=False, **self.options()
        )
        if done.returncode != 0:
            raise ServerError(f"{command[0]} failed:\n{(done.stdout + done.stderr)[-2000:]}")
