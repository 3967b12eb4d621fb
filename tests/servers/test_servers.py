"""The PostgreSQL and the S3 that the tests run on do what they rely on."""

import contextlib
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import guard
import local_server
import postgres_server
import psycopg
import pytest
import sqlalchemy as sa
from botocore.exceptions import EndpointConnectionError
from local_server import ServerError
from postgres_server import Postgres
from project import wait_for
from s3_server import S3

SUPPORT = Path(__file__).parents[1] / "support"
COUNTS = sa.Table("counts", sa.MetaData(), sa.Column("n", sa.Integer, primary_key=True))


@pytest.fixture
def engine(postgres_url):
    """SQLAlchemy on an empty database, with a connection for each use."""
    url = sa.make_url(postgres_url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    yield engine
    engine.dispose()


def write(engine, *numbers: int) -> None:
    with engine.begin() as connection:
        COUNTS.create(connection, checkfirst=True)
        connection.execute(COUNTS.insert(), [{"n": n} for n in numbers])


def read(engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.scalars(sa.select(COUNTS.c.n).order_by(COUNTS.c.n)))


def listening(pids: set[int]) -> set[str]:
    """Return the addresses on which any of these processes listens, as the kernel writes them."""
    sockets = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it ended meanwhile
            links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
            sockets |= {link.strip("socket:[]") for link in links if link.startswith("socket:")}

    def rows(table: str) -> list[list[str]]:
        lines = Path("/proc/self/net", table).read_text().splitlines()
        return [line.split() for line in lines[1:]]

    tcp = {row[1] for row in rows("tcp") + rows("tcp6") if row[3] == "0A" and row[9] in sockets}
    return tcp | {row[7] for row in rows("unix") if len(row) > 7 and row[6] in sockets}


def processes(server) -> set[int]:
    return {server.pid, *guard.below(server.pid)}


def test_what_sqlalchemy_writes_it_reads(engine):
    """In another connection the rows of a committed transaction are there, others are not."""
    write(engine, 1, 2)
    with engine.connect() as connection:
        connection.execute(COUNTS.insert(), {"n": 3})
        assert read(engine) == [1, 2]
        connection.rollback()
    assert read(engine) == [1, 2]


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_test_has_a_database_of_its_own(engine, name):
    """What another test wrote is not there."""
    assert sa.inspect(engine).get_table_names() == []
    write(engine, 1)


def test_databases_are_apart(postgres, engine):
    """A test that needs two databases gets two."""
    other = psycopg.connect(postgres.database())
    write(engine, 1)
    with other, pytest.raises(psycopg.errors.UndefinedTable):
        other.execute("SELECT n FROM counts")
    other.close()


def test_a_dropped_database_is_gone(postgres, engine):
    """Also while somebody is connected to it."""
    url = postgres.database()
    connection = psycopg.connect(url)
    postgres.drop(url)
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT")
    connection.close()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)


def test_postgres_keeps_what_it_acknowledged(postgres, engine):
    """SIGKILL while it writes: each transaction is there that was acknowledged, in three rounds.

    The one that was under way may be there or not; all processes of the server are new.
    """
    write(engine, -1)
    before, acknowledged = processes(postgres), [-1]

    def count(first: int) -> None:
        with engine.connect() as connection:
            for n in range(first, first + 1_000_000):
                connection.execute(COUNTS.insert(), {"n": n})
                connection.commit()
                acknowledged.append(n)

    for wanted in (200, 400, 600):
        with ThreadPoolExecutor(1) as beside:
            writing = beside.submit(count, acknowledged[-1] + 1)
            wait_for(lambda wanted=wanted: len(acknowledged) > wanted, what="the load")
            postgres.kill()
            with pytest.raises(sa.exc.OperationalError):
                writing.result(60)
        postgres.restart()
        rows, number = read(engine), len(acknowledged)
        assert rows[:number] == acknowledged
        assert rows[number:] in ([], [acknowledged[-1] + 1])
        acknowledged[:] = rows
    assert not before & processes(postgres)


def test_a_frozen_postgres_answers_once_thawed(postgres, postgres_url):
    """While frozen neither an open connection nor a new one is answered; then both are."""
    with psycopg.connect(postgres_url) as connection, ThreadPoolExecutor(1) as beside:
        postgres.freeze()
        answer = beside.submit(connection.execute, "SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(postgres_url, connect_timeout=2)
        assert not answer.done()
        postgres.thaw()
        assert answer.result(60).fetchone() == (1,)
    psycopg.connect(postgres_url).close()


@pytest.mark.parametrize("server", ["postgres", "s3"])
@pytest.mark.parametrize("broken", ["kill", "freeze"])
def test_a_broken_server_is_healed(request, server, broken):
    """Whatever was done to it, afterwards it runs at the same address and answers."""
    running = request.getfixturevalue(server)
    port = running.port
    getattr(running, broken)()
    running.heal()
    assert running.port == port
    assert running.answers()


def test_postgres_runs_unprivileged(postgres):
    """No process of it is root's, nor are its files."""
    ids = []
    for pid in processes(postgres):
        with contextlib.suppress(OSError):  # it ended meanwhile
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            ids += [line.split() for line in lines if line.startswith(("Uid:", "Gid:", "Groups:"))]
    assert len(ids) > 9
    assert not [row for row in ids if "0" in row]
    for path in postgres.data.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            assert path.lstat().st_uid != 0, path
    assert postgres.data.stat().st_mode & 0o777 == 0o700


def test_clients_are_no_superusers(postgres, postgres_url):
    """Who finds the port cannot run programs, and gets in only under the one name."""
    denied = pytest.raises(psycopg.errors.InsufficientPrivilege)
    with psycopg.connect(postgres_url) as connection, denied:
        connection.execute("COPY (SELECT 1) TO PROGRAM 'cat'")
    with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
        psycopg.connect(postgres_url, user="postgres")


@pytest.mark.parametrize("server", ["postgres", "s3"])
def test_a_server_listens_on_loopback_only(request, server):
    """On one port of 127.0.0.1, and on no unix socket."""
    running = request.getfixturevalue(server)
    assert listening(processes(running)) == {f"0100007F:{running.port:04X}"}


@pytest.mark.parametrize("server", ["postgres", "s3"])
def test_a_port_that_is_taken_meanwhile_is_no_obstacle(request, server, monkeypatch):
    """It starts on another one, and whoever took the first is not mistaken for it."""
    kind = S3 if server == "s3" else request.getfixturevalue("new_postgres")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (free,) = local_server.free_ports(1)
        monkeypatch.setattr(local_server, "free_ports", lambda _: [free, taken.getsockname()[1]])
        with kind() as running:
            assert running.port == free
            assert running.answers()


def test_a_server_that_cannot_start_says_why(new_postgres):
    """The error holds the end of its log, and its folder is gone."""
    server = new_postgres({"max_connections": "many"})
    with pytest.raises(ServerError, match="max_connections"):
        server.__enter__()
    assert not server.folder.exists()


def test_without_its_programs_postgres_says_what_to_install(monkeypatch):
    """The reason names Debian's package."""
    monkeypatch.setattr(postgres_server, "binaries", lambda: None)
    assert "postgresql" in postgres_server.missing()
    with pytest.raises(ServerError, match="Debian"):
        Postgres().__enter__()


@pytest.mark.parametrize("end", ["return", "kill"])
def test_nothing_of_postgres_is_left(new_postgres, end):
    """Also after SIGKILL of the process that started it while the server was frozen and in use.

    Gone are all processes, each of which has a group of its own, the folder, and shared memory.
    """
    code = """
import sys, time, guard, psycopg
from postgres_server import Postgres
with Postgres() as server:
    connection = psycopg.connect(server.url)
    pids = [server.pid, *guard.below(server.pid)]
    if sys.argv[1] == "kill":
        server.freeze()
    print(server.folder, *pids, flush=True)
    sys.stdin.read(1)
    connection.close()
"""
    starter = subprocess.Popen(
        [sys.executable, "-c", code, end],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=dict(os.environ, PYTHONPATH=str(SUPPORT)),
    )  # fmt: skip
    with starter:
        folder, *pids = starter.stdout.readline().split()
        segments = shared_memory(pids)
        assert len(pids) > 3
        assert segments
        if end == "kill":
            starter.kill()
    for pid in map(int, pids):
        wait_for(lambda pid=pid: not guard.runs(pid), 20, f"the end of process {pid}")
    wait_for(lambda: not Path(folder).exists(), 20, "the removal of its folder")
    assert not segments & shared_memory(pids)


def shared_memory(pids: list[str]) -> set[str]:
    """Return the ids of the segments of shared memory that any of these processes made."""
    rows = [row.split() for row in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[4] in pids}


@pytest.mark.parametrize(
    ("setting", "said", "code"),
    [
        ("none", "1 skipped", 0),
        ("", "1 skipped", 0),
        ("own", "cannot run here: no initdb", 1),
        ("no", "is own, best or none, not no", 1),
    ],
    ids=["none", "missing", "wanted", "unknown"],
)
def test_only_who_wishes_it_tests_without_postgres(setting, said, code):
    """Where it is missing its tests are skipped, or fail if it is wanted, and say why."""
    program = "import sys, postgres_server, pytest; postgres_server.binaries = lambda: None;"
    test = "tests/servers/test_servers.py::test_what_sqlalchemy_writes_it_reads"
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-c", f"{program} sys.exit(pytest.main(sys.argv[1:]))",
         "-p", "no:cacheprovider", test],
        cwd=SUPPORT.parents[1], capture_output=True, text=True, check=False,
        env={**env, "PYTHONPATH": str(SUPPORT), "MIDSTREAM_TEST_POSTGRES": setting},
    )  # fmt: skip
    assert (done.returncode, said in done.stdout) == (code, True), done.stdout + done.stderr


def test_what_s3fs_writes_it_lists_reads_and_deletes(s3_url):
    """A folder on S3 is as good as one on disk; an object replaced is read as the new one."""
    s3, root = fsspec.core.url_to_fs(s3_url)
    assert not s3.exists(root)
    for name, content in {"a": b"", "b/c": bytes(range(256)) * 4096, "b/d": b"old"}.items():
        s3.pipe_file(f"{root}/{name}", content)
    s3.pipe_file(f"{root}/b/d", b"new")
    assert s3.find(root) == [f"{root}/a", f"{root}/b/c", f"{root}/b/d"]
    assert s3.ls(f"{root}/b", detail=False) == [f"{root}/b/c", f"{root}/b/d"]
    assert s3.cat_file(f"{root}/a") == b""
    assert s3.cat_file(f"{root}/b/c", start=-2) == b"\xfe\xff"
    assert s3.cat_file(f"{root}/b/d") == b"new"
    s3.rm(f"{root}/b", recursive=True)
    assert s3.find(root) == [f"{root}/a"]
    with pytest.raises(FileNotFoundError):
        s3.cat_file(f"{root}/b/d")


def test_a_large_object_is_written_in_parts(s3_url):
    """It is there when it is closed, not before."""
    s3, root = fsspec.core.url_to_fs(s3_url)
    content = os.urandom(1 << 20) * 11
    with s3.open(f"{root}/large", "wb", block_size=5 << 20) as file:
        file.write(content)
        assert not s3.exists(f"{root}/large")
    assert s3.cat_file(f"{root}/large") == content


def test_an_object_is_written_by_the_first_only(s3_url):
    """A write that is to create an object fails where there is one."""
    s3, root = fsspec.core.url_to_fs(s3_url)
    s3.pipe_file(f"{root}/once", b"first", mode="create")
    with pytest.raises(FileExistsError):
        s3.pipe_file(f"{root}/once", b"second", mode="create")
    assert s3.cat_file(f"{root}/once") == b"first"


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_test_has_a_bucket_of_its_own(s3_url, name):
    """What another test wrote is not there."""
    s3, root = fsspec.core.url_to_fs(s3_url)
    assert s3.find(root.partition("/")[0]) == []
    s3.pipe_file(f"{root}/same", b"")


def test_another_process_finds_the_bucket(s3_url):
    """The environment is all it needs."""
    code = "import fsspec, sys; fsspec.open(sys.argv[1], 'wb').open().close()"
    subprocess.run([sys.executable, "-c", code, f"{s3_url}/there"], check=True)
    s3, root = fsspec.core.url_to_fs(s3_url)
    assert s3.find(root) == [f"{root}/there"]


def test_s3_forgets_all_when_it_is_restarted(s3, s3_url):
    """While it is down an error says so; afterwards buckets can be made again."""
    store, root = fsspec.core.url_to_fs(s3_url, config_kwargs={"retries": {"max_attempts": 0}})
    store.pipe_file(f"{root}/here", b"")
    s3.kill()
    with pytest.raises(EndpointConnectionError):  # botocore's own: it is no OSError
        store.cat_file(f"{root}/here")
    s3.restart()
    with pytest.raises(FileNotFoundError):
        store.cat_file(f"{root}/here")
    store.pipe_file(f"{s3.bucket()}/here", b"")
