"""Kafka for tests and development: a real Apache Kafka (KRaft), one node or three.

Needs Java 17, and Maven to fetch the jars once. `python tests/support/kafka_broker.py` runs a
cluster in the foreground; tests use `Cluster`. `Noida` is the stand-in where there is no Java.
"""

import argparse
import atexit
import base64
import fcntl
import importlib.util
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Self

from certificates import Certificates, make_certificates
from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from guard import Guard
from kafka_client import QUIET, Kafka
from kafka_jars import VERSION, BrokerError, cached, jars, java, missing

_PROTOCOLS = {"SASL": "SASL_PLAINTEXT", "SCRAM": "SASL_SSL", "TLS": "SSL"}  # by listener
SASL_USER, SASL_PASSWORD = "midstream", "a-test-password"
START_SECONDS = 90.0  # a start takes 2 to 5 s; on a machine that is busy with tests, more


def free_ports(number: int) -> list[int]:
    """Return ports that are free, below those the system hands out to clients.

    One of those could be taken by a client, even one that tries to reach the broker, while the
    broker that had it is down. No other process is given them as long as this one lives: it may
    start the server later, or again.
    """
    some = random.SystemRandom().sample(range(20_000, 32_000), 200)
    return list(islice((port for port in some if is_free(port) and _ours(port)), number))


def _ours(port: int) -> bool:
    """Take a port, unless another process, or this one, has it."""
    folder = Path(tempfile.gettempdir(), f"midstream-ports-{os.geteuid()}")
    folder.mkdir(exist_ok=True)
    file = Path(folder, str(port)).open("w")  # noqa: SIM115 it stays open as long as we live
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return False
    _held.append(file)
    return True


_held: list[Any] = []


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class _Local(Kafka):
    """Brokers that this process runs, in a folder that goes with them unless it was given."""

    def __init__(self, bootstrap: str, folder: Path | None) -> None:
        super().__init__(bootstrap)
        self._temporary = folder is None
        self.folder = Path(
            tempfile.mkdtemp(prefix="midstream-kafka-") if folder is None else folder
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._guard: Guard | None = None

    def start(self) -> Self:
        raise NotImplementedError

    def _watch(self) -> Guard:
        self._guard = Guard(self.folder if self._temporary else None)
        atexit.register(self.stop)
        return self._guard

    def stop(self) -> None:
        """Kill all nodes; nothing that was acknowledged is lost to that."""
        atexit.unregister(self.stop)
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()


class Cluster(_Local):
    """Apache Kafka with one node or three on loopback, nodes numbered from 1.

    With three nodes, topics have three replicas and `acks=all` means two of them. `secure` adds
    listeners with one user (`SASL_USER`, `SASL_PASSWORD`) and certificates of its own
    (`certificates`): `sasl_bootstrap` with SASL/PLAIN, `scram_bootstrap` with SASL/SCRAM over TLS,
    `tls_bootstrap` with TLS that asks for the client's certificate.
    `properties` go into every node's server.properties. A folder given keeps its data; a cluster
    can be started on it again.
    """

    def __init__(
        self,
        nodes: int = 1,
        folder: Path | None = None,
        *,
        secure: bool = False,
        properties: Mapping[str, Any] | None = None,
        port: int | None = None,
    ) -> None:
        if nodes not in {1, 3}:
            raise ValueError(f"one node or three, not {nodes}")
        self.nodes = range(1, nodes + 1)
        free = iter(free_ports(5 * nodes))
        self._ports = {node: port + node - 1 if port else next(free) for node in self.nodes}
        self._controllers = {node: next(free) for node in self.nodes}
        self._secure: dict[str, dict[int, int]] = {}
        if secure:
            self._secure = {name: {n: next(free) for n in self.nodes} for name in _PROTOCOLS}
        self.sasl_bootstrap = _addresses(self._secure.get("SASL", {}))
        self.scram_bootstrap = _addresses(self._secure.get("SCRAM", {}))
        self.tls_bootstrap = _addresses(self._secure.get("TLS", {}))
        self.certificates: Certificates | None = None
        self._properties = dict(properties or {})
        self._processes: dict[int, subprocess.Popen] = {}
        self._frozen: set[int] = set()
        super().__init__(_addresses(self._ports), folder)

    def start(self) -> Self:
        """Format the storage where that was not done, start all nodes, wait for their answers."""
        found, why = java()
        if found is None:
            raise BrokerError(why)
        self._java = [
            found, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData",
            "-XX:+ExitOnOutOfMemoryError", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-cp", f"{jars()}/*",
        ]  # fmt: skip
        self._watch()
        self._format()
        for node in self.nodes:
            self._run(node)
        for node in self.nodes:
            self._await(node)
        if self._secure:
            how = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
            user = UserScramCredentialUpsertion(SASL_USER, how, SASL_PASSWORD.encode())
            admin = self.admin()  # what it is asked goes with it
            admin.alter_user_scram_credentials([user])[SASL_USER].result(START_SECONDS)
        return self

    def pid(self, node: int = 1) -> int:
        """Return the process id of a node; its process group has the same."""
        return self._processes[node].pid

    def log(self, node: int = 1) -> Path:
        return self.folder / f"node-{node}.log"

    def kill(self, node: int = 1) -> None:
        """SIGKILL."""
        assert self._guard is not None
        self._frozen.discard(node)
        self._guard.kill(self._processes[node])

    def freeze(self, node: int = 1) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        assert self._guard is not None
        self._frozen.add(node)
        self._guard.signal(self._processes[node], signal.SIGSTOP)

    def thaw(self, node: int = 1) -> None:
        """SIGCONT."""
        assert self._guard is not None
        self._frozen.discard(node)
        self._guard.signal(self._processes[node], signal.SIGCONT)

    def restart(self, node: int = 1, *, wait: bool = True) -> None:
        """Start a node again on its folder and ports, killed first if it runs.

        Waits until it answers and its replicas have caught up, so that the next may be killed.
        """
        self.kill(node)
        self._run(node)
        if wait:
            self._await(node)
            self._await_replicas()

    def heal(self) -> None:
        """Have all nodes run and answer again, whatever was done to them."""
        for node in list(self._frozen):
            self.thaw(node)
        dead = [node for node in self.nodes if self._processes[node].poll() is not None]
        for node in dead:
            self.restart(node, wait=False)
        for node in self.nodes:
            self._await(node)
        self._await_replicas()

    def check(self) -> None:
        """Raise with the end of its log if a node ended by itself."""
        for node, process in self._processes.items():
            if process.poll() is not None:
                raise BrokerError(self._tail(node, f"ended with code {process.returncode}"))

    def _run(self, node: int) -> None:
        assert self._guard is not None
        heap = "-Xmx512m" if len(self.nodes) == 1 else "-Xmx400m"
        command = [*self._java[:1], heap, *self._java[1:], "kafka.Kafka", str(self._config(node))]
        self._processes[node] = self._guard.start(command, self.log(node))

    def _await(self, node: int) -> None:
        """Wait until a node answers and the controller counts it among the living."""
        end = time.monotonic() + START_SECONDS
        while not listens(self._ports[node]):  # until then a client would only back off
            self.check()
            if time.monotonic() > end:
                raise BrokerError(self._tail(node, f"did not listen within {START_SECONDS} s"))
            time.sleep(0.05)
        admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{self._ports[node]}", **QUIET})
        while True:
            try:
                if node in admin.list_topics(timeout=1.0).brokers:
                    return
            except KafkaException:
                pass
            self.check()
            if time.monotonic() > end:
                raise BrokerError(self._tail(node, f"did not answer within {START_SECONDS} s"))
            time.sleep(0.05)

    def _await_replicas(self) -> None:
        """Wait until every partition is led, and in sync on all nodes that run."""
        running = {n for n in self.nodes if self._processes[n].poll() is None} - self._frozen

        def in_sync() -> bool:
            topics = self.admin().list_topics(timeout=self.timeout).topics.values()
            partitions = [p for topic in topics for p in topic.partitions.values()]
            return all(
                p.leader in running and running.intersection(p.replicas) <= set(p.isrs)
                for p in partitions
                if running.intersection(p.replicas)
            )

        self._until(in_sync, f"partitions not in sync on nodes {sorted(running)}")

    def _tail(self, node: int, what: str) -> str:
        lines = self.log(node).read_text(errors="replace").splitlines()[-20:]
        return "\n".join([f"node {node} {what}; its log ends:", *lines])

    def _config(self, node: int) -> Path:
        return self.folder / f"node-{node}.properties"

    def _format(self) -> None:
        identity = base64.urlsafe_b64encode(bytes(1) + secrets.token_bytes(15))
        guard, running = self._guard, []
        assert guard is not None
        for node in self.nodes:
            lines = [f"{key}={value}" for key, value in self._settings(node).items()]
            self._config(node).write_text("\n".join(lines) + "\n")
            if not (self.folder / f"node-{node}" / "meta.properties").exists():
                command = [*self._java, "kafka.tools.StorageTool", "format"]
                command += ["-t", identity.decode().rstrip("="), "-c", str(self._config(node))]
                running.append((node, guard.start(command, self.log(node))))
        for node, process in running:
            code = process.wait(START_SECONDS)
            guard.kill(process)
            if code != 0:
                raise BrokerError(self._tail(node, "could not be formatted"))

    def _settings(self, node: int) -> dict[str, Any]:
        protocols = {"CONTROLLER": "PLAINTEXT", "PLAINTEXT": "PLAINTEXT"}
        listeners = {"PLAINTEXT": self._ports[node]}
        secure = {}
        for name, ports in self._secure.items():
            protocols[name] = _PROTOCOLS[name]
            listeners[name] = ports[node]
        if self._secure:
            self.certificates = made = make_certificates(self.folder / "certificates")
            login = "org.apache.kafka.common.security"
            secure = {
                "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN",
                "listener.name.sasl.plain.sasl.jaas.config": (
                    f'{login}.plain.PlainLoginModule required user_{SASL_USER}="{SASL_PASSWORD}";'
                ),
                "listener.name.scram.sasl.enabled.mechanisms": "SCRAM-SHA-256",
                "listener.name.scram.scram-sha-256.sasl.jaas.config": (
                    f"{login}.scram.ScramLoginModule required;"
                ),
                "listener.name.tls.ssl.client.auth": "required",
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": made.server,
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": made.authority,
            }
        shown = [f"{name}://127.0.0.1:{port}" for name, port in listeners.items()]
        copies = len(self.nodes)
        agreed = 1 if copies == 1 else 2
        return {
            "process.roles": "broker,controller",
            "node.id": node,
            "controller.quorum.voters": ",".join(
                f"{voter}@127.0.0.1:{port}" for voter, port in self._controllers.items()
            ),
            "listeners": ",".join([*shown, f"CONTROLLER://127.0.0.1:{self._controllers[node]}"]),
            "advertised.listeners": ",".join(shown),
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": ",".join(f"{k}:{v}" for k, v in protocols.items()),
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": self.folder / f"node-{node}",
            "auto.create.topics.enable": "false",
            "default.replication.factor": copies,
            "min.insync.replicas": agreed,
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": 1,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": agreed,
            "transaction.state.log.num.partitions": 1,
            # What dies is noticed, and what expires is ended, while a test can wait for it.
            "broker.session.timeout.ms": 3000,
            "broker.heartbeat.interval.ms": 500,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": 500,
            "log.retention.check.interval.ms": 1000,
            # Small: a few clients, a few topics.
            "log.cleaner.dedupe.buffer.size": 8 << 20,
            "num.io.threads": 4,
            "num.network.threads": 2,
            **secure,
            **self._properties,
        }


class Noida(_Local):
    """noida-db, a small server that speaks Kafka's protocol; it keeps its data in memory.

    It has no nodes to kill: after SIGKILL its last seconds are lost.
    """

    def __init__(self, folder: Path | None = None) -> None:
        (self._port,) = free_ports(1)
        super().__init__(f"127.0.0.1:{self._port}", folder)

    @staticmethod
    def available() -> bool:
        return importlib.util.find_spec("noida_db") is not None

    def start(self) -> Self:
        log = self.folder / "noida.log"
        command = [sys.executable, "-m", "noida_db.cli", "start", "--only", "kafka"]
        command += ["--kafka-port", str(self._port), "--data-dir", str(self.folder / "data")]
        process = self._watch().start(command, log)
        end = time.monotonic() + START_SECONDS
        while not listens(self._port):
            if process.poll() is not None or time.monotonic() > end:
                raise BrokerError(f"noida-db did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        self.topics()
        return self


def _addresses(ports: Mapping[int, int]) -> str:
    return ",".join(f"127.0.0.1:{port}" for port in ports.values())


def main() -> None:
    """Run a cluster until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Run Apache Kafka until Ctrl-C.")
    parser.add_argument("--nodes", type=int, choices=[1, 3], default=1)
    parser.add_argument("--port", type=int, help="of the first node; 9092 if that is free")
    parser.add_argument("--folder", type=Path, help="keep the data here; else it is removed")
    given = parser.parse_args()
    wanted = given.port or 9092
    taken = [port for port in range(wanted, wanted + given.nodes) if not is_free(port)]
    if taken and given.port:
        sys.exit(f"port {taken[0]} is taken")
    if why := missing():
        sys.exit(f"Apache Kafka cannot run here: {why}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        if not cached().exists():
            print(f"fetching Apache Kafka {VERSION} (43 MB, once)", flush=True)
        port = None if taken else wanted
        with Cluster(given.nodes, given.folder, port=port) as cluster:
            print(f"Apache Kafka {VERSION}: {cluster.bootstrap}  (Ctrl-C stops it)", flush=True)
            while True:
                cluster.check()
                time.sleep(1.0)
    except BrokerError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("stopped")


if __name__ == "__main__":
    main()
