"""The servers that tests need, started when the first of them asks; CONTRIBUTING.md tells how.

With pytest-xdist every worker has its own, a Kafka of about 250 to 360 MB a node: a test may kill
it without another noticing.
"""

import functools
import os
import re
import secrets
import signal
import sys
import tempfile

import postgres_server
import pytest
from kafka_broker import Cluster, Noida
from kafka_client import Kafka
from kafka_jars import missing
from kafka_topics import Topics
from postgres_server import Postgres
from project import Project
from s3_server import S3

from midstream.engine import masking

NEEDS = "needs an Apache Kafka of its own"

# Who starts pytest in the background (nohup, &) has signals ignored, and so would have all that
# tests start, and send these signals to.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@functools.cache
def chosen() -> tuple[str, str]:
    """Return what the Kafka tests run on (given, apache, noida, none, nothing), and why."""
    if os.environ.get("MIDSTREAM_TEST_BOOTSTRAP"):
        return "given", "MIDSTREAM_TEST_BOOTSTRAP names a cluster that tests must not break"
    wanted = os.environ.get("MIDSTREAM_TEST_KAFKA") or "best"
    if wanted not in {"apache", "noida", "none", "best"}:
        raise pytest.UsageError(f"MIDSTREAM_TEST_KAFKA is apache, noida or none, not {wanted}")
    if wanted == "none":
        return "none", "MIDSTREAM_TEST_KAFKA=none"
    why = missing()
    if wanted != "noida" and why is None:
        return "apache", ""
    if wanted != "apache" and Noida.available():
        return "noida", why or "MIDSTREAM_TEST_KAFKA=noida"
    return "nothing", f"{why or 'no noida-db'}; MIDSTREAM_TEST_KAFKA=none skips the Kafka tests"


def cannot():
    """Skip the test, or fail it where Kafka was to be had and is not."""
    kind, why = chosen()
    if kind == "nothing":
        pytest.fail(f"Kafka cannot run here: {why}", pytrace=False)
    pytest.skip(f"{NEEDS}: {why}")


@pytest.fixture(scope="session")
def kafka():
    """Any Kafka: for tests that only read and write. See `kafka_own` for those that break it."""
    kind, _ = chosen()
    if kind == "given":
        yield Kafka(os.environ["MIDSTREAM_TEST_BOOTSTRAP"])
    elif kind in {"apache", "noida"}:
        with Cluster() if kind == "apache" else Noida() as running:
            yield running
    else:
        cannot()


@pytest.fixture(scope="session")
def new_kafka():
    """`Cluster`, for tests that start an Apache Kafka with settings of their own."""
    if chosen()[0] != "apache":
        cannot()
    return Cluster


@pytest.fixture
def kafka_own(new_kafka, kafka):
    """One node of Apache Kafka that the test may kill, freeze and restart; healed afterwards."""
    yield kafka
    kafka.heal()


@pytest.fixture(scope="module")
def _three_nodes(new_kafka):
    with new_kafka(3) as cluster:
        yield cluster


@pytest.fixture
def kafka3(_three_nodes):
    """Three nodes that the test may break; one cluster per module, healed before each test."""
    _three_nodes.heal()
    return _three_nodes


@pytest.fixture
def topic():
    """Return a function that makes fresh topic names; what has them is deleted from a given Kafka.

    Names of a test share their beginning, so ``topic("events")`` may also be used to derive more.
    """
    prefix = f"midstream-test-{secrets.token_hex(4)}"
    yield lambda name="events": f"{prefix}-{name}"
    if chosen()[0] == "given":
        given = Kafka(os.environ["MIDSTREAM_TEST_BOOTSTRAP"])
        for name in given.topics():
            if name.startswith(prefix):
                given.delete_topic(name)


def pytest_collection_modifyitems(items):
    """Refuse names of tests with an address in them: no two processes would agree on them."""
    odd = [item.nodeid for item in items if re.search(r" at 0x[0-9a-f]{6,}", item.nodeid)]
    if odd:
        raise pytest.UsageError(f"a test's name has an address of memory in it: {odd[0]}")


@pytest.fixture(autouse=True)
def _processes_of_their_own(request, monkeypatch):
    """Start processes as users do, in tests that are marked `unforked`."""
    if request.node.get_closest_marker("unforked"):
        monkeypatch.setenv("MIDSTREAM_TEST_FORK", "0")


@pytest.fixture(autouse=True)
def _nothing_left_running():
    yield
    Project.end_all()


@pytest.fixture(autouse=True)
def _no_modules_of_projects():
    """Forget the modules of a test's project: those of another test's are called the same."""
    before, path = set(sys.modules), sys.path[:]
    yield
    sys.path[:] = path
    if (factory := sys.modules.get("midstream.flows.factory")) is not None:
        factory._entered.clear()
    for name in set(sys.modules) - before:
        place = str(getattr(sys.modules[name], "__file__", None) or "")
        if place.startswith(tempfile.gettempdir()):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _nothing_hidden():
    yield
    masking.reveal()


@pytest.fixture
def topics(kafka, topic, tmp_path):
    """Makes projects on topics of their own."""
    return lambda name, **options: Topics(
        kafka, lambda n: topic(f"{name}.{n}"), tmp_path / name, **options
    )


@pytest.fixture(scope="session")
def new_postgres():
    """`Postgres`, for tests that start one with settings of their own."""
    wanted = os.environ.get("MIDSTREAM_TEST_POSTGRES") or "best"
    if wanted not in {"own", "best", "none"}:
        raise pytest.UsageError(f"MIDSTREAM_TEST_POSTGRES is own, best or none, not {wanted}")
    if wanted == "none":
        pytest.skip("needs a PostgreSQL of its own: MIDSTREAM_TEST_POSTGRES=none")
    if why := postgres_server.missing():
        if wanted == "own":
            pytest.fail(f"PostgreSQL cannot run here: {why}", pytrace=False)
        pytest.skip(f"needs a PostgreSQL of its own: {why}")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PG")]:
            patch.delenv(name)  # the tester's own PGSERVICE, PGSSLMODE and so on
        yield Postgres


@pytest.fixture(scope="session")
def postgres(new_postgres):
    """A PostgreSQL to break; a test that does so takes `postgres_url` too, which heals it."""
    with new_postgres() as running:
        yield running


@pytest.fixture
def postgres_url(postgres):
    """The URL of an empty database, dropped afterwards."""
    url = postgres.database()
    yield url
    postgres.heal()
    postgres.drop(url)


@pytest.fixture(scope="session")
def s3():
    """An object store to break; a test that does so takes `s3_url` too, which heals it."""
    with S3() as running:
        yield running


@pytest.fixture
def s3_url(s3, monkeypatch):
    """A folder in an empty bucket, and the environment in which s3fs finds it."""
    from s3fs import S3FileSystem

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)  # the tester's own profile, token and so on
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    # fsspec keeps instances, which keep the environment that they were made in.
    S3FileSystem.clear_instance_cache()
    yield f"s3://{s3.bucket()}/prefix"
    S3FileSystem.clear_instance_cache()
    s3.heal()


def pytest_runtest_setup(item):
    if "kafka" in item.fixturenames:
        item.user_properties.append(("kafka", chosen()[0]))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """Say in the last lines what ran on something else than Apache Kafka, and what could not."""
    yield
    stats = terminalreporter.stats
    ran = [
        report
        for outcome in ("passed", "failed")
        for report in stats.get(outcome, [])
        if report.when == "call" and ("kafka", "noida") in map(tuple, report.user_properties)
    ]
    left = [report for report in stats.get("skipped", []) if NEEDS in str(report.longrepr)]
    if not ran and not left:
        return
    terminalreporter.section("Kafka")
    if ran:
        terminalreporter.line(f"{len(ran)} tests ran on noida-db, not on Apache Kafka")
    if left:
        terminalreporter.line(f"{len(left)} tests could not run ({chosen()[1]}):")
    for report in left:
        terminalreporter.line(f"  {report.nodeid}")
