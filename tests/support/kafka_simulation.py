"""A simulated Kafka, on which our connectors run unchanged, with trouble that a seed decides.

What a real Apache Kafka 4.1 and librdkafka 2.16 answer in each situation was looked at
(`tests/kafka/test_simulation.py` asks both the same), and is answered here the same: offsets that
transaction markers take up, what readers of committed records see, epochs that shut out older
writers, transactions that time out, and which errors are fatal, retriable or need an abort.
"""

import itertools
from collections import deque
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import confluent_kafka as ck
from confluent_kafka import KafkaError, KafkaException

from midstream.connectors.kafka import consumer as kafka
from midstream.connectors.kafka import journal as kafka_journal

TRANSACTION_SECONDS = 10.0
OUTAGES = (0.2, 2.0, 6.0, 30.0)  # seconds
_CAPACITY = 50  # messages that a producer holds before it is full


def error(code: int, text: str = "simulated", *, fatal=False, retriable=False, abort=False):
    return KafkaError(code, text, fatal, retriable, abort)


def timed_out() -> KafkaException:
    return KafkaException(error(KafkaError._TIMED_OUT, "timed out", retriable=True))


class Transaction:
    """What a writer has begun: `decision` is what it will be, known once the markers are there."""

    def __init__(self, begun: float, who: Any = None) -> None:
        self.begun = begun
        self.who = who
        self.decision: bool | None = None
        self.logs: list[Log] = []


class Log:
    """A partition: entries (value, milliseconds, transaction, who); None is a marker."""

    def __init__(self) -> None:
        self.entries: list[tuple[Any, int, Transaction | None, Any] | None] = []
        self.open: dict[Transaction, int] = {}  # without markers yet, and where they begin
        self.decided: list[tuple[Any, Any]] = []  # (value, who) that are committed

    @property
    def end(self) -> int:
        return len(self.entries)

    @property
    def stable(self) -> int:
        """Where readers of committed records have to wait."""
        return min(self.open.values(), default=len(self.entries))

    def append(self, value, now: float, transaction: Transaction | None, who: Any) -> int:
        if transaction is not None and transaction not in self.open:
            self.open[transaction] = len(self.entries)
            transaction.logs.append(self)
        self.entries.append((value, int(now * 1000), transaction, who))
        return len(self.entries) - 1

    def visible(self, offset: int, committed: bool) -> bool:
        entry = self.entries[offset]
        if entry is None:
            return False
        return not committed or entry[2] is None or entry[2].decision is True

    def read(self) -> list[Any]:
        """Values of all committed records, in order."""
        return [self.entries[i][0] for i in range(self.stable) if self.visible(i, True)]


class Writer:
    """What the coordinator knows of a transactional id."""

    def __init__(self) -> None:
        self.epoch = -1
        self.transaction: Transaction | None = None  # not decided yet
        self.unmarked: Transaction | None = None  # decided
        self.commits: list[Process] = []  # that readers see; whose they were


class Cluster:
    """Brokers. `trouble_in` calls from now something goes wrong, unless `calm`."""

    def __init__(self, rng, topics: dict[str, int]) -> None:
        self.rng = rng
        self.now = 1_000_000.0
        self.logs = {(t, i): Log() for t, count in topics.items() for i in range(count)}
        self.topics = topics
        self.ids = dict.fromkeys(topics, 1)
        self.controller = 1
        self.writers: dict[str, Writer] = {}
        self.process: Any = Process()  # which one calls
        self.feed = lambda: None  # called before each fetch
        self.trouble_in = -1
        self.trouble_every = 60  # calls at most
        self.markers = 0.5  # how probable it is, at each call, that those that are late come
        self.outage_at_first = 0.0  # how probable, within the first transaction of a producer
        self.calm = False
        self.eager = False  # give readers all that there is
        self._down_until = 0.0
        self._lose_reply = False
        self._fail_message = False
        self.full = 0
        self._late: list[Any] = []  # requests on their way from those who died
        self.happened: set[str] = set()

    # --- what goes on by itself

    def tick(self) -> None:
        """Let time and trouble go on: before each call that goes to the brokers."""
        rng = self.rng
        self.now += 0.001
        self.trouble_in -= 1
        if self.trouble_in == 0:
            self._trouble()
        for writer in self.writers.values():
            if writer.unmarked is not None and rng.random() < self.markers:
                self.mark(writer)
            begun = writer.transaction
            if begun is not None and self.now - begun.begun > TRANSACTION_SECONDS and not self.down:
                self.happened.add("transaction timed out")
                writer.epoch += 1
                self.decide(writer, False)
        if self._late and rng.random() < 0.3 and not self.down:
            self.happened.add("request of a dead one")
            self._late.pop(0)()

    def _trouble(self) -> None:
        rng = self.rng
        self.trouble_in = rng.randint(1, self.trouble_every)
        if self.calm:
            return
        kind = rng.choice(["down", "down", "reply", "reply", "message", "full", "pause"])
        if kind == "down":
            self.go_down(rng.choice(OUTAGES))
        elif kind == "reply":
            self._lose_reply = True
        elif kind == "message":
            self._fail_message = True
        elif kind == "full":
            self.full = rng.randint(1, 3)
        else:
            self.now += 1.5 * TRANSACTION_SECONDS

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.process.rest()

    def heal(self) -> None:
        self.calm = True
        self._down_until, self._lose_reply, self._fail_message, self.full = 0.0, False, False, 0

    @property
    def down(self) -> bool:
        return self.now < self._down_until

    def go_down(self, seconds: float) -> None:
        self.happened.add("outage")
        self._down_until = self.now + seconds

    def make_anew(self, topic: str, values: list[Any]) -> None:
        """Delete a topic, and make another of its name, in which each partition has `values`.

        Who reads the old one goes on at the same offset in the new one.
        """
        self.ids[topic] += 1
        for index in range(self.topics[topic]):
            log = self.logs[topic, index] = Log()
            for value in values:
                log.append(value, self.now, None, None)

    def loses_reply(self) -> bool:
        """Whether the answer to what was just done is lost, perhaps for a good while."""
        lost, self._lose_reply = self._lose_reply, False
        if lost:
            self.happened.add("reply lost")
            if self.rng.random() < 0.5:
                self.go_down(self.rng.choice(OUTAGES))
        return lost

    def fails_message(self) -> bool:
        lost, self._fail_message = self._fail_message, False
        if lost:
            self.happened.add("message lost")
        return lost

    # --- the coordinator

    def writer(self, name: str) -> Writer:
        return self.writers.setdefault(name, Writer())

    def decide(self, writer: Writer, commit: bool) -> None:
        """Make a transaction final; its markers, and so readers, may be late."""
        self.mark(writer)
        transaction, writer.transaction = writer.transaction, None
        if transaction is None:
            return
        transaction.decision = commit
        writer.unmarked = transaction
        if commit:
            for log in transaction.logs:
                log.decided += [(e[0], e[3]) for e in log.entries if e and e[2] is transaction]

    def mark(self, writer: Writer) -> None:
        """Write the markers of what was decided."""
        transaction, writer.unmarked = writer.unmarked, None
        if transaction is not None:
            for log in transaction.logs:
                del log.open[transaction]
                log.entries.append(None)
            if transaction.decision:
                writer.commits.append(transaction.who)

    def shut_out(self, writer: Writer) -> int:
        """Give a writer a new epoch, ending what the one before had open."""
        writer.epoch += 1
        self.decide(writer, False)
        self.mark(writer)
        return writer.epoch

    def late(self, request: Any) -> None:
        """A request of one who has died: it arrives now, later, or never."""
        when = self.rng.choice(["now", "later", "later", "never"])
        if when == "now" and not self.down:
            request()
        elif when != "never":
            self._late.append(request)

    @contextmanager
    def installed(self):
        """Have our connectors use this cluster and its clock."""
        modules = (kafka, kafka_journal)
        client = _Client(self)
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)
        tokens = itertools.count()
        old = [module.ck for module in modules], kafka_journal.time, kafka_journal.secrets
        admin, kafka.AdminClient = kafka.AdminClient, lambda config: AdminClient(self, config)
        few, kafka_journal._FEW = kafka_journal._FEW, 4  # journals are short here
        try:
            for module in modules:
                module.ck = client
            kafka_journal.time = clock
            kafka_journal.secrets = SimpleNamespace(token_hex=lambda _: f"token {next(tokens)}")
            yield self
        finally:
            for module, was in zip(modules, old[0], strict=True):
                module.ck = was
            kafka.AdminClient = admin
            kafka_journal.time, kafka_journal.secrets = old[1:]
            kafka_journal._FEW = few


class _Client:
    """In the place of the module `confluent_kafka`."""

    def __init__(self, cluster: Cluster) -> None:
        self.Producer = lambda config: Producer(cluster, config)
        self.Consumer = lambda config: Consumer(cluster, config)

    def __getattr__(self, name: str) -> Any:
        return getattr(ck, name)


class Process:
    """Whose calls they are. `point` is called wherever it may die or be frozen."""

    told_shut_out_by: Any = None  # and so must not come back as long as that one is at work
    dead = False
    at_work = True

    def __init__(self) -> None:
        self.producers: list[Producer] = []

    def point(self) -> None:
        """Nothing happens to this one."""

    def rest(self) -> None:
        """Let others go on while this one waits."""


class _Base:
    def __init__(self, cluster: Cluster, config: dict[str, Any]) -> None:
        self._cluster = cluster
        self._config = config
        self._process = cluster.process

    def _call(self) -> None:
        """Begin a call that goes to the brokers."""
        self._process.point()
        self._cluster.tick()

    def list_topics(self, topic: str | None = None, timeout: float = -1) -> Any:
        self._call()
        if self._cluster.down:
            self._cluster.now += timeout
            raise KafkaException(error(KafkaError._TRANSPORT))
        found = {
            name: SimpleNamespace(partitions=dict.fromkeys(range(count)), error=None)
            for name, count in self._cluster.topics.items()
            if topic in (None, name)
        }
        return SimpleNamespace(topics=found, controller_id=self._cluster.controller)


class Producer(_Base):
    """A producer of librdkafka, which sends in the background."""

    def __init__(self, cluster: Cluster, config: dict[str, Any]) -> None:
        super().__init__(cluster, config)
        self._name: str | None = config.get("transactional.id")
        self._epoch = -1
        self._commits = 0  # of the writer, when this one began
        self._state = "new" if self._name else "open"  # ready, open, ending, abortable, shut out
        self._begun = False  # a transaction
        self._told = False  # by an exception of `poll`, that it is shut out
        self._ending: bool | None = None
        self._queue: deque[tuple[str, int, Any, Any]] = deque()
        self._reports: deque[tuple[Any, Any, Any]] = deque()
        self._process.producers.append(self)

    def init_transactions(self, timeout: float) -> None:
        self._call()
        cluster = self._cluster
        told = self._process.told_shut_out_by
        assert told is None or not told.at_work, "a run that was shut out has taken over again"
        if cluster.down:
            cluster.now += timeout
            raise timed_out()
        writer = cluster.writer(self._name)
        self._epoch, self._commits = cluster.shut_out(writer), len(writer.commits)
        if cluster.loses_reply():
            raise timed_out()
        self._state = "ready"
        self._process.point()

    def begin_transaction(self) -> None:
        self._process.point()
        self._refuse_if_shut_out()
        if self._state != "ready":
            raise KafkaException(error(KafkaError._STATE, f"in state {self._state}"))
        self._state = "open"

    def produce(self, topic: str, value: Any = None, partition: int = -1, on_delivery=None) -> None:
        self._process.point()
        if self._state == "shut out":
            self._tell()
            raise KafkaException(error(KafkaError._FATAL, "Unable to produce message: Fatal error"))
        if self._state != "open":
            raise KafkaException(error(KafkaError._STATE, f"in state {self._state}"))
        cluster = self._cluster
        if self._name and (cluster.full > 0 or len(self._queue) >= _CAPACITY):
            cluster.full -= 1
            cluster.happened.add("queue full")
            raise BufferError("Local: Queue full")
        if partition < 0:
            partition = cluster.rng.randrange(cluster.topics[topic])
        self._queue.append((topic, partition, value, on_delivery))
        if cluster.rng.random() < 0.2:
            self.send(cluster.rng.randint(1, 3))

    def poll(self, timeout: float = 0.0) -> int:
        self._call()
        cluster = self._cluster
        cluster.now += timeout
        self.send(cluster.rng.randint(0, 20))
        if self._state == "shut out" and not self._told:
            self._told = True
            self._refuse_if_shut_out()
        return self._serve(cluster.rng.randint(0, len(self._reports)))

    def commit_transaction(self, timeout: float) -> None:
        self._end(True, timeout)

    def abort_transaction(self, timeout: float) -> None:
        if not self._process.dead:
            told = self._process.told_shut_out_by
            try:
                self._end(False, timeout)
            finally:  # a run gives up when it closes: it is in an outage, or ends anyway
                self._process.told_shut_out_by = told

    def _end(self, commit: bool, timeout: float) -> None:
        self._call()
        cluster = self._cluster
        self._refuse_if_shut_out()
        if self._state == "abortable" and commit:
            raise KafkaException(error(KafkaError._INCONSISTENT, "messages failed", abort=True))
        if self._ending not in (None, commit):
            raise KafkaException(error(KafkaError._CONFLICT, "already ending", retriable=True))
        if self._state not in ("open", "ending", "abortable"):
            raise KafkaException(error(KafkaError._STATE, f"in state {self._state}"))
        if not commit:
            self._queue.clear()
        self._state, self._ending = "ending", commit
        self.send()
        self._serve(len(self._reports))
        self._refuse_if_shut_out()
        if self._state == "abortable":
            self._ending = None
            raise KafkaException(error(KafkaError._INCONSISTENT, "messages failed", abort=True))
        if self._queue or cluster.down:
            cluster.now += timeout
            raise timed_out()
        self._process.point()
        self.ask_to_end()
        self._refuse_if_shut_out()
        if cluster.loses_reply():
            raise timed_out()
        self._state, self._ending = "ready", None
        self._process.point()

    def send(self, most: int = -1) -> None:
        """Send what waits, as the client's thread does at times of its own."""
        cluster = self._cluster
        while self._queue and most != 0 and not cluster.down:
            most -= 1
            topic, index, value, told = self._queue.popleft()
            if self._name is None:
                cluster.logs[topic, index].append(value, cluster.now, None, self._process)
                continue
            writer = cluster.writer(self._name)
            if writer.epoch != self._epoch:
                self._report(error(KafkaError.INVALID_PRODUCER_EPOCH), topic, index, value, told)
                self._shut_out()
                return
            if cluster.fails_message():
                self._report(error(KafkaError._MSG_TIMED_OUT), topic, index, value, told)
                self._state = "abortable"
                self._queue.clear()
                return
            if writer.transaction is None:
                cluster.mark(writer)
                writer.transaction = Transaction(cluster.now, self._process)
                self._first_outage()
            log = cluster.logs[topic, index]
            offset = log.append(value, cluster.now, writer.transaction, self._process)
            self._report(None, topic, index, value, told, offset)

    def _first_outage(self) -> None:
        """In the first transaction, perhaps, an outage for longer than one may take."""
        cluster, first = self._cluster, not self._begun
        self._begun = True
        if first and not cluster.calm and cluster.rng.random() < cluster.outage_at_first:
            cluster.happened.add("outage at first")
            cluster.outage_at_first *= 0.8  # one day it comes through
            cluster.go_down(cluster.rng.choice([1.1, 3.0]) * TRANSACTION_SECONDS)

    def ask_to_end(self) -> None:
        """Have the coordinator end the transaction, unless another epoch has begun."""
        writer = self._cluster.writer(self._name)
        if writer.epoch != self._epoch:
            self._shut_out()
        else:
            self._cluster.decide(writer, bool(self._ending))

    def leave(self) -> None:
        """The process has died; what it had sent may still arrive."""
        self._cluster.late(lambda: self.send(self._cluster.rng.randint(0, len(self._queue))))
        if self._state == "ending" and not self._queue:
            self._cluster.late(self.ask_to_end)

    def _shut_out(self) -> None:
        self._state = "shut out"
        self.purge()

    def purge(self) -> None:
        for topic, index, value, told in self._queue:
            self._report(error(KafkaError._PURGE_QUEUE), topic, index, value, told)
        self._queue.clear()

    def _report(self, problem, topic, index, value, told, offset: int = -1001) -> None:
        message = Message(topic, index, offset, value, 0, problem)
        self._reports.append((problem, message, told))

    def _refuse_if_shut_out(self) -> None:
        if self._state == "shut out":
            self._tell()
            raise KafkaException(error(KafkaError._FENCED, "fenced", fatal=True))

    def _tell(self) -> None:
        """Note that the process knows who has shut it out: who has committed since it began.

        Else it only was silent too long, or the other has just begun: then it may come back.
        """
        commits = self._cluster.writer(self._name).commits[self._commits :]
        others = [who for who in commits if who is not self._process]
        if others:
            self._process.told_shut_out_by = others[-1]
            self._cluster.happened.add("shut out")

    def _serve(self, count: int) -> int:
        for _ in range(count):
            problem, message, told = self._reports.popleft()
            told = told or self._config.get("on_delivery")
            if told is not None and (problem or not self._config["delivery.report.only.error"]):
                told(problem, message)
        return count


class Message:
    """As confluent_kafka.Message."""

    __slots__ = ("_error", "_index", "_milliseconds", "_offset", "_topic", "_value")

    def __init__(self, topic, index, offset, value, milliseconds, problem) -> None:
        self._topic = topic
        self._index = index
        self._offset = offset
        self._value = value
        self._milliseconds = milliseconds
        self._error = problem

    def __len__(self) -> int:
        return len(self._value or b"")

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return self._index

    def offset(self) -> int:
        return self._offset

    def value(self) -> Any:
        return self._value

    def key(self) -> None:
        return None

    def error(self) -> Any:
        return self._error

    def timestamp(self) -> tuple[int, int]:
        return ck.TIMESTAMP_CREATE_TIME, self._milliseconds


class Consumer(_Base):
    """A consumer of librdkafka with partitions that were assigned to it."""

    def __init__(self, cluster: Cluster, config: dict[str, Any]) -> None:
        super().__init__(cluster, config)
        self._committed = config.get("isolation.level") == "read_committed"
        self._positions: dict[tuple[str, int], int] = {}
        self._ends: dict[tuple[str, int], int] = {}  # told already
        self._paused: set[tuple[str, int]] = set()

    def _end(self, log: Log) -> int:
        return log.stable if self._committed else log.end

    def get_watermark_offsets(self, where: Any, timeout: float) -> tuple[int, int]:
        self._call()
        if self._cluster.down:
            self._cluster.now += timeout
            raise KafkaException(error(KafkaError._ALL_BROKERS_DOWN))
        return 0, self._end(self._cluster.logs[where.topic, where.partition])

    def assign(self, wanted: list[Any]) -> None:
        self._positions = {(w.topic, w.partition): w.offset for w in wanted}
        self._ends = {}

    def incremental_assign(self, wanted: list[Any]) -> None:
        for w in wanted:
            assert (w.topic, w.partition) not in self._positions, "assigned twice"
            self._positions[w.topic, w.partition] = w.offset

    def incremental_unassign(self, wanted: list[Any]) -> None:
        for w in wanted:
            del self._positions[w.topic, w.partition]
            self._ends.pop((w.topic, w.partition), None)

    def pause(self, wanted: list[Any]) -> None:
        self._paused |= {(w.topic, w.partition) for w in wanted}

    def resume(self, wanted: list[Any]) -> None:
        self._paused -= {(w.topic, w.partition) for w in wanted}

    def consume(self, most: int, timeout: float) -> list[Message]:
        self._call()
        cluster = self._cluster
        cluster.feed()
        if cluster.down:
            cluster.now += timeout
            if (told := self._config.get("error_cb")) is not None:
                told(error(KafkaError._ALL_BROKERS_DOWN))
            return []
        found: list[Message] = []
        places = list(self._positions)
        cluster.rng.shuffle(places)
        for place in places:
            if place not in self._paused:
                cut = most if cluster.eager else cluster.rng.choice([0, 1, 2, 5, 20])
                self._fetch(place, min(cut, most - len(found)), found)
        if not found:
            cluster.now += timeout
        self._process.point()
        return found

    def _fetch(self, place: tuple[str, int], most: int, found: list[Message]) -> None:
        log = self._cluster.logs[place]
        at, end = self._positions[place], self._end(log)
        while at < end and most > 0:
            if log.visible(at, self._committed):
                value, milliseconds, _, _ = log.entries[at]
                found.append(Message(*place, at, value, milliseconds, None))
                most -= 1
            at += 1
        self._positions[place] = at
        if at == end and most > 0 and self._ends.get(place) != end:
            self._ends[place] = end
            problem = error(KafkaError._PARTITION_EOF)
            found.append(Message(*place, at, None, 0, problem))

    def poll(self, timeout: float) -> None:
        """Serve what is called back, which `consume` has served."""

    def commit(self, **_: Any) -> None:
        self._process.point()
        if self._cluster.down:
            raise KafkaException(error(KafkaError._WAIT_COORD))

    def close(self) -> None:
        """No point to die at: a generator may do it, where an exception would be swallowed."""


class AdminClient(_Base):
    """An admin client of librdkafka, which asks in the background and answers by a future."""

    def poll(self, _: float) -> int:
        """Say nothing of connections, which are the cluster's own."""
        return 0

    def describe_topics(self, wanted: Any, request_timeout: float) -> dict[str, Future[Any]]:
        self._call()
        if not 0 <= request_timeout <= 3_600:
            raise ValueError("request_timeout: expecting integer in range 0..3600000")
        (name,) = wanted.topic_names
        answer: Future[Any] = Future()
        if self._cluster.down:
            self._cluster.now += request_timeout
            answer.set_exception(timed_out())
        else:
            answer.set_result(SimpleNamespace(topic_id=ck.Uuid(self._cluster.ids[name], 1)))
        self._process.point()
        return {name: answer}
