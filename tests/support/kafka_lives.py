"""Lives of an engine on a simulated Kafka: crashes, zombies, outages, disks that fail or are lost.

One seed decides everything. What runs is ours as it is: journal, consumer, input, decoder, shard.
In some lives an operator gives commands, to all shards; versions are in a store that all share.
Each process is a thread, of which one at a time goes on; where it dies or is frozen, and who goes
on then, is decided at its calls to the brokers. Afterwards all that a reader of committed records
sees is compared with the fold of the journal, and with a life in which nothing happened.
"""

import json
import math
import random
import threading
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from journal_fold import Fold
from kafka_simulation import Cluster, Log, Process, Transaction
from simulation import NAMED, POLICIES, Crash, Disk, make_trainer, soon

from midstream.connectors.aligned import AlignedInputs
from midstream.connectors.decode.decoder import Decoding
from midstream.connectors.encode.outputs import encode_predictions, encode_rejected
from midstream.connectors.input import NoAnswerError
from midstream.connectors.kafka.consumer import Consumer, Identity
from midstream.connectors.kafka.input import TopicInput
from midstream.connectors.kafka.journal import KafkaJournal, Signature
from midstream.connectors.kafka.messages import MessageBlock, MessageDecoder, Messages
from midstream.engine.events.batch import EventBatch
from midstream.engine.shard.commands import Order, RefusedError
from midstream.engine.shard.journal import Command, JournalError, Range, Record, UnavailableError
from midstream.engine.shard.outbox import Outbox
from midstream.engine.shard.outcome import EventError
from midstream.engine.shard.shard import Shard
from midstream.engine.state.snapshot import Snapshot, SnapshotFolder, pack, unpack
from midstream.engine.training.trainer import Trainer
from midstream.flows.config.settings import FeedbackFields
from midstream.flows.inputs.feedback import as_feedback, label_fields

SECONDS = 5.0  # how long an answer is waited for
OUTPUTS = {"predictions": "predictions", "rejected": "rejected"}
DECODER = MessageDecoder("regression", None, None, 10_000)
LABELS = MessageDecoder("regression", label_fields(FeedbackFields()), None, 10_000)
DECODINGS = {
    "in": Decoding("regression", max_record_bytes=10_000),
    "labels": Decoding("regression", label_fields(FeedbackFields()), max_record_bytes=10_000),
}


class Input:
    """What producers write, a little at a time, some of it in transactions, some of them aborted.

    An event whose feature `bad` is true makes the learner raise; one in twelve is unreadable.
    """

    def __init__(
        self, rng: random.Random, logs: list[Log], events: int, *, joins: bool = False
    ) -> None:
        self._joins = joins
        self._rng = rng
        self._logs = logs
        self._left = events
        self._made = 0
        self._open: list[Transaction] = []

    def feed(self, now: float) -> None:
        rng = self._rng
        if self._open and rng.random() < 0.5:
            self._end(self._open.pop(0))
        if self._left <= 0 or rng.random() < 0.4:
            return
        log = rng.choice(self._logs)
        kind = rng.choice(["plain", "plain", "committed", "aborted"])
        transaction = None if kind == "plain" else Transaction(now)
        for _ in range(rng.randint(1, 10)):
            log.append(self._event(aborted=kind == "aborted"), now, transaction, None)
        if transaction is not None:
            transaction.decision = kind == "committed"
            self._open.append(transaction)

    def finish(self, now: float) -> None:
        while self._open or self._left > 0:
            self.feed(now)

    def _end(self, transaction: Transaction) -> None:
        for log in transaction.logs:
            del log.open[transaction]
            log.entries.append(None)

    def _event(self, *, aborted: bool) -> bytes | None:
        rng = self._rng
        self._left -= not aborted
        self._made += 1
        kind = rng.random()
        if kind < 0.04:
            return None
        if kind < 0.08:
            return b'{"x"'
        event: dict[str, Any] = {"id": f"e{self._made}", "x": {"v": rng.randrange(1000)}}
        if self._made % 3:
            event["source"] = rng.choice(NAMED)
        if kind > 0.97:
            event["x"]["bad"] = True
        if kind > (0.9 if self._joins else 0.12):
            event["y"] = rng.randrange(5)
        if self._joins:
            event["ts"] = float(self._made)
        return json.dumps(event).encode()


class Feedback(Input):
    """Labels for events, in any order: twice, for others, for nobody, unreadable."""

    def _event(self, *, aborted: bool) -> bytes | None:
        rng = self._rng
        self._left -= not aborted
        self._made += 1
        if rng.random() < 0.04:
            return rng.choice([None, b'{"id"', b'{"y": 1}'])
        label: dict[str, Any] = {"id": f"e{max(self._made + rng.randint(-4, 2), 0)}"}
        label |= {"y": rng.randrange(5), "ts": self._made + 1.5, "source": rng.choice(NAMED)}
        return json.dumps(label).encode()


class Host(Disk):
    """A machine's disk, with the state of whoever runs there."""

    process: Any = None

    def operate(self, operation: Any, partial: Any = None) -> Any:
        try:
            return super().operate(operation, partial)
        except Crash:
            self.process.dead = True
            raise


class Engine(Process):
    """A process of the engine. It goes on only within `resume`.

    Attributes
    ----------
    result
        None while it lives, then: ended, shut out, crashed, or failed (of an error of the disk).
    last
        It reads to the end of the input, and nothing happens to it.
    """

    def __init__(self, life: "Life", host: Host, *, fate: str = "", fuse: int = -1) -> None:
        super().__init__()
        self.life = life
        self.host = host
        self.fate = fate
        self.last = not fate
        self.frozen = self.stopping = self.careful = False
        self.result: str | None = None
        self.problem: BaseException | None = None
        self.digests: dict[str, str] = {}
        self.signatures: dict[str, Signature] = {}
        self.others = {name: len(w.commits) for name, w in life.cluster.writers.items()}
        self._fuse = fuse
        self._left = -1
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()
        host.process = self
        host.fuse = fuse if fate == "disk" else -1

    def resume(self, points: int = -1) -> None:
        """Let it go on until it ends, is frozen, or has passed so many points."""
        self._left = points
        self.frozen = False
        self.life.cluster.process = self
        self._go.release()
        self._back.acquire()
        if self.result is not None:
            self._thread.join()
        if self.problem is not None:
            raise self.problem

    def kill(self) -> None:
        """End the thread."""
        if self.result is None:
            self.dead = True
            self.problem = None
            self.resume()

    def point(self) -> None:
        if self.dead:
            raise Crash
        self._fuse -= 1
        self._left -= 1
        if self._fuse == 0 and self.fate == "crash":
            self.dead = True
            raise Crash
        if self._fuse == 0 and self.fate == "freeze":
            self.frozen = True
        if self._fuse == 0 and self.fate == "stop":
            self.stopping = True
        if self.frozen or self._left == 0:
            self._back.release()
            self._go.acquire()
            if self.dead:
                raise Crash

    def rest(self) -> None:
        self._left = min(self._left, 1)
        self.point()

    @property
    def at_work(self) -> bool:
        return self.result is None and not self.frozen

    def _main(self) -> None:
        self._go.acquire()
        try:
            self.result = self.life.live(self)
        except Crash:
            self.result = "crashed"
        except OSError:
            self.result = "failed"
        except BaseException as problem:
            self.result, self.problem = "broken", problem
        finally:
            self._back.release()


class Lane:
    """A shard in a process, as the dataflow has it: input, journal, and what is on its way."""

    def __init__(
        self, engine: Engine, consumers: dict[str, Consumer], name: str, parts: list[int]
    ) -> None:
        life = engine.life
        self._joins = life.joins
        self._office = life.office
        self._engine = engine
        self._outbox = Outbox(engine.host.folder(name))
        self._rng = life.rng
        inputs: dict[str, Any] = {
            topic: TopicInput(
                consumer, parts, until_eof=engine.last, seconds=SECONDS, decoding=DECODINGS[topic]
            )
            for topic, consumer in consumers.items()
        }
        self.input: Any = inputs["in"]
        if self._joins:
            self.input = AlignedInputs(inputs, decoded={"labels": as_feedback})
        self.journal = KafkaJournal(
            {}, f"life-{name}", "journal", int(name), outputs=OUTPUTS, seconds=SECONDS,
            signatures=engine.signatures,
        )  # fmt: skip
        self.shard = Shard.open(
            name,
            life.trainer,
            self.journal,
            SnapshotFolder(engine.host.folder(name), keep=2),
            source="in",
            snapshot_events=self._rng.choice([5, 15, 1000]),
            snapshot_seconds=1e9,
            commit_seconds=self._rng.choice([0.0, 0.02, 0.3]),
            clock=lambda: life.cluster.now,
            wall=lambda: life.cluster.now,
            fetch=lambda version: self._office.fetch(name, version, self._outbox),
            outbox=self._outbox,
            keep_from=0,
            check_input=lambda: [c.confirm(SECONDS) for c in consumers.values()],
            reject=lambda rejected: {"rejected": encode_rejected(rejected)},
            careful=engine.careful,
            timer=self._rng.random,
        )
        self._recovered = self.journal.end
        self.input.seek(self.shard.positions, self.shard.known)
        self._handed = self.shard.last_command
        self._next_step: Range | Command | None = self.shard.next_step()
        self._to_begin = False
        self._flight: list[Any] = []  # outcomes; None is a tick
        if self._next_step is None:
            self._begin()

    def _begin(self) -> None:
        for work in self.input.begin(untouched=self.shard.untouched):
            batch = self.input.decode(work).batch
            self.shard.publish(self.shard.step(work.span, batch, []), {})
        self.shard.commit()
        self.check()

    def _next(self) -> Any:
        if isinstance(self._next_step, Range):
            work = self.input.replay(self._next_step, self._rng.choice([1, 300, 2000]))
            if work is not None and work.final:
                self._go_on()
            return work
        if self._to_begin and not self.shard.replaying:
            self._to_begin = False
            self._begin()
        return self.input.read(self._rng.choice([1, 300, 2000]))

    def _go_on(self) -> None:
        self._next_step = self.shard.next_step()
        self._to_begin = self._next_step is None

    def turn(self) -> str:
        """Read, decode, learn and put out, or obey; return what came of it: work, nothing, the end.

        Nothing is read before a command was carried out.
        """
        if isinstance(self._next_step, Command):
            self.land()
            self.shard.carry_out_again(self._next_step)
            self._read_again()
            return "work"
        order, ended = None, self._next_step is None and self.input.ended
        if self._next_step is None and not self.shard.replaying:
            order = self._office.next(self._handed, urgent=self._engine.last and ended)
        if order is not None:
            self.land()
            self._carry_out(order)
            return "work"
        work = self._next()
        if work is not None:
            decoded = self.input.decode(work)
            self._flight.append(
                self.shard.step(work.span, decoded.batch, decoded.rejected, final=work.final)
            )
        elif ended and self._next_step is None:
            self.land()
            return "end"
        else:
            self._flight.append(None)
        self.land(self._rng.choice([0, 0, 2]))
        return "nothing" if work is None else "work"

    def _carry_out(self, order: Order) -> None:
        gone = {name: self._rng.randint(0, 20) for name in self.input.names}
        real = self._rng.random() < 0.8
        self.shard.carry_out(order, oldest=lambda: self.input.oldest() | ({} if real else gone))
        self._handed = order.id
        self.check()
        if self._rng.random() < 0.5:
            self._office.deliver(self.shard.name, self._outbox)
        if self.shard.replaying:
            self._read_again()

    def _read_again(self) -> None:
        """Have the input read from where the shard is now, if it is to be applied again."""
        if self.shard.replaying:
            self.input.rewind(self.shard.positions)
        self._go_on()

    def land(self, most: int = 0) -> None:
        """Put out what is on its way, but for the newest."""
        while len(self._flight) > most:
            outcome = self._flight.pop(0)
            if outcome is None:
                self.shard.tick()
            elif outcome.live:
                predictions = encode_predictions(
                    outcome.batch, outcome.predictions,
                    task="regression", model="life", version=self.shard.version, role="champion",
                )  # fmt: skip
                rejected = encode_rejected(outcome.rejected)
                self.shard.publish(outcome, {"predictions": predictions, "rejected": rejected})
            self.check()

    def drop(self) -> None:
        self._flight.clear()

    def check(self) -> None:
        """What the journal says was committed was committed, by this process."""
        decided = self._engine.life.journal(self.shard.name).decided
        assert len(decided) >= self.journal.end, "more was said to be committed than was"
        if self.journal.end > self._recovered:
            value, who = decided[self.journal.end - 1]
            assert json.loads(value)["seq"] == self.journal.end - 1, "a record has another's place"
            assert who is self._engine, "another's record was taken for one's own"


class Life:
    """What happens to an engine under a seed; `check` says what has to hold afterwards.

    Parameters
    ----------
    partitions
        Of the input.
    single
        All partitions feed one shard; else each has one.
    commands
        How many are given.
    joins
        Whether labels come later, in a topic of their own.
    """

    parts = (5, 20_000)
    """Of how many records a journal is read at once, in some life."""

    def __init__(
        self,
        seed: int,
        *,
        partitions: int = 1,
        single: bool = True,
        commands: int = 0,
        joins: bool = False,
    ) -> None:
        self.seed = seed
        self.joins = joins
        self.rng = random.Random(seed)
        self.office = Office(self.rng, [f"in-{i}" for i in range(partitions)], commands)
        names = ["000"] if single else [f"{i:03d}" for i in range(partitions)]
        parts = [list(range(partitions))] if single else [[i] for i in range(partitions)]
        self.shards = dict(zip(names, parts, strict=True))
        topics = {"in": partitions, "journal": len(names), "predictions": 2, "rejected": 1}
        topics |= {"labels": partitions} if joins else {}
        self.cluster = Cluster(self.rng, topics)

        def logs(topic: str) -> list[Log]:
            return [self.cluster.logs[topic, i] for i in range(partitions)]

        self.inputs = [Input(self.rng, logs("in"), events=30, joins=joins)]
        self.inputs += [Feedback(self.rng, logs("labels"), events=40)] if joins else []
        self.cluster.feed = lambda: [each.feed(self.cluster.now) for each in self.inputs]
        self.engines: list[Engine] = []
        self.results: list[str] = []
        self._hosts: list[Host] = []
        self.digests: dict[str, str] = {}
        self._fates = self.rng.randint(1, 4)

    def journal(self, name: str) -> Log:
        return self.cluster.logs["journal", int(name)]

    # --- one process

    def live(self, engine: Engine) -> str:
        """Run as `midstream run` does, which waits where brokers do not answer."""
        for attempt in range(100):
            # A start takes many calls, with a long journal: one day it comes through.
            self.cluster.trouble_every = 60 + 10 * attempt
            try:
                if self._session(engine):
                    return "ended"
            except (UnavailableError, NoAnswerError):
                self.cluster.now += self.rng.choice([0.5, 10.0])
                engine.point()
            except JournalError as error:
                if "another run has taken over" not in str(error):
                    raise
                assert self._others_signed(engine), "an outage was taken for another run"
                return "shut out"
        raise AssertionError("it begins again without end")

    def _others_signed(self, engine: Engine) -> bool:
        """Whether another process has committed anything since this one began."""
        writers = self.cluster.writers.items()
        since = [(engine.others.get(name, 0), writer.commits) for name, writer in writers]
        return any(who is not engine for before, commits in since for who in commits[before:])

    def _session(self, engine: Engine) -> bool:
        """Open all shards and go on to the end; False if events are to be left out first."""
        topics = ["labels", "in"] if self.joins else ["in"]
        consumers: dict[str, Consumer] = {}
        lanes: dict[str, Lane] = {}
        try:
            for topic in topics:
                consumers[topic] = Consumer({}, topic, "life", identity=Identity({}, topic))
            for name, parts in self.shards.items():
                lanes[name] = Lane(engine, consumers, name, parts)
            try:
                self._loop(engine, lanes, consumers["in"])
            except EventError:
                assert not engine.careful, "what is careful raises"
                if self.rng.random() < 0.5:  # the rest may be dropped or not
                    for lane in lanes.values():
                        lane.drop()
                for lane in lanes.values():
                    lane.land()
                    lane.shard.commit()
                    lane.check()
                engine.careful = True
                return False
            for name, lane in lanes.items():
                lane.shard.close()
                lane.check()
                if engine.last:
                    engine.digests[name] = lane.shard.trainer.digest()
            return True
        finally:
            for lane in lanes.values():
                lane.journal.close()
            for consumer in consumers.values():
                consumer.close()

    def _loop(self, engine: Engine, lanes: dict[str, Lane], consumer: Consumer) -> None:
        running, idle = list(lanes.values()), 0
        while running and not (engine.stopping or (idle > 8 and not engine.last)):
            lane = self.rng.choice(running)
            came = lane.turn()
            if came == "end":
                running.remove(lane)
            elif came == "nothing":
                self.cluster.now += self.rng.choice([0.05, 0.05, 1.0])
            idle = 0 if came == "work" else idle + 1
            consumer.commit({0: 1})  # for lag tools; nothing may come of it
        for lane in lanes.values():
            lane.land()

    # --- all of them

    def run(self) -> None:
        """Live through what the seed has in store, then to the end of the input."""
        with self.cluster.installed(), soon(random.Random(self.seed).choice(self.parts)):
            try:
                self._run()
            finally:
                for engine in self.engines:
                    engine.kill()
        for writer in self.cluster.writers.values():
            self.cluster.mark(writer)

    def _run(self) -> None:
        rng = self.rng
        self.cluster.trouble_in = rng.choice([-1, rng.randint(1, 80)])
        asleep: list[Engine] = []
        awake: list[Engine] = []
        live = self._start()
        while True:
            if asleep and rng.random() < 0.3:
                awake.append(asleep.pop(rng.randrange(len(asleep))))
            engine = rng.choice([live, *awake])
            engine.resume(rng.randint(1, 60) if awake or asleep else -1)
            if engine.frozen:
                asleep.append(engine)
                if engine in awake:
                    awake.remove(engine)
                self.cluster.now += rng.choice([0.0, 0.0, 5.0, 15.0])
            elif engine.result is None:
                continue
            else:
                self._ended(engine)
            if engine is not live:
                if engine in awake:
                    awake.remove(engine)
            elif live.last and live.result == "ended":
                break
            else:
                live = self._start()
        self.digests = live.digests
        for zombie in [*awake, *asleep]:
            while zombie.result is None:
                zombie.resume()
            self._ended(zombie)

    def _start(self) -> Engine:
        rng = self.rng
        assert len(self.engines) < 30, "processes shut each other out without end"
        free = [h for h in self._hosts if h.process is None]
        if free and rng.random() < 0.8:
            host = rng.choice(free[-2:])
        else:
            host = Host(rng)
            self._hosts.append(host)
        fate = ""
        if self._fates > 0:
            self._fates -= 1
            fate = rng.choice(["crash", "crash", "freeze", "freeze", "disk", "stop"])
        else:
            self.cluster.heal()
            for each in self.inputs:
                each.finish(self.cluster.now)
        fuse = rng.randint(1, 30 if fate == "disk" else rng.choice([40, 300]))
        engine = Engine(self, host, fate=fate, fuse=fuse)
        self.engines.append(engine)
        return engine

    def _ended(self, engine: Engine) -> None:
        self.results.append(f"{engine.fate} {engine.result}")
        engine.host.process, engine.host.fuse = None, -1
        if engine.result == "crashed":
            for producer in engine.producers:
                producer.leave()
            engine.host.die()

    # --- what has to hold

    def check(self) -> None:
        outputs = self.outputs()
        predicted: dict[Any, Any] = {}
        not_joined: list[Any] = []
        for name, parts in self.shards.items():
            records = [msgspec.json.decode(v, type=Record) for v in self.journal(name).read()]
            values: dict[Any, Any] = {}

            def learned(batch: Any, step: Any, version: int, values: Any = values) -> None:
                for origin, value in zip(batch.origins, step.predictions.values, strict=True):
                    values[origin] = (value if math.isfinite(value) else None, version)
                not_joined.extend(tuple(rejected.origin) for _, rejected in step.rejected)

            fold = Fold(self.trainer, self.read, learned=learned, most=1_000)
            fold.apply(records)
            assert self.digests[name] == fold.digest(), "the state is not the fold of its journal"
            self.office.check(name, fold)
            predicted |= values
            wanted = [o for o in self.sound if o[1] in parts]
            assert set(values) == set(wanted), "an event was not learned, or should not have been"
            # Then it is also the state of a life in which nothing happened: the fold of the same.
            assert len(parts) > 1 or list(values) == wanted, "events were learned out of order"
        got = {tuple(p["origin"]): (p["y_pred"], p["version"]) for p in outputs["predictions"]}
        assert len(got) == len(outputs["predictions"]), "a prediction is there twice"
        assert got == predicted, "predictions differ"
        self.joined = sum(len(x) for x in (not_joined,))
        wanted = [o for o in self._all_of("in") if o not in set(self.sound)]
        if self.joins:
            readable = {o for part in self.events["labels"] for o in part.origins}
            wanted += [o for o in self._all_of("labels") if o not in readable] + not_joined
        rejected = sorted(tuple(r["origin"]) for r in outputs["rejected"])
        assert rejected == sorted(wanted), "a rejected record is missing, or there twice"

    def _all_of(self, topic: str) -> list[Any]:
        """Return the origins of all records of a topic."""
        parts = [part for parts in self.shards.values() for part in parts]
        return [(topic, part, offset) for part in parts for offset in self.offsets(topic, part)]

    def outputs(self) -> dict[str, list[dict[str, Any]]]:
        """What readers of committed records see; each partition has a shard's in its order."""
        found: dict[str, list[dict[str, Any]]] = {"predictions": [], "rejected": []}
        for (topic, _), log in self.cluster.logs.items():
            if topic in found:
                lines = [json.loads(value) for value in log.read()]
                for parts in self.shards.values():
                    for part in parts:
                        mine = [x["origin"][2] for x in lines if x["origin"][1] == part]
                        assert topic == "rejected" or mine == sorted(mine), "out of order"
                found[topic] += lines
        return found

    def offsets(self, topic: str, part: int) -> list[int]:
        log = self.cluster.logs[topic, part]
        return [i for i in range(log.end) if log.visible(i, True)]

    @cached_property
    def events(self) -> dict[str, list[Any]]:
        """All events, and labels, of each partition, once all is over."""
        return {
            topic: [self._decoded(topic, part) for part in range(self.cluster.topics[topic])]
            for topic in (["in", "labels"] if self.joins else ["in"])
        }

    def _decoded(self, topic: str, part: int) -> EventBatch:
        log = self.cluster.logs[topic, part]
        offsets = self.offsets(topic, part)
        entries = [log.entries[i] for i in offsets]
        values, times = [e[0] for e in entries], [e[1] for e in entries]
        messages = Messages(values, np.array(offsets, np.int64), times)
        block = MessageBlock(topic, part, messages, 0, log.end)
        batch = (LABELS if topic == "labels" else DECODER).decode(block).batch
        batch.is_feedback = topic == "labels"
        return batch

    @cached_property
    def sound(self) -> list[Any]:
        """Origins of all events that can be learned, in order."""
        return [
            origin
            for batch in self.events["in"]
            for origin, x in zip(batch.origins, batch.dicts(), strict=True)
            if not x.get("bad")
        ]

    def trainer(self) -> Trainer:
        policy = POLICIES[self.seed % len(POLICIES)] if self.joins else None
        return make_trainer(policy=policy)

    def read(self, partition: str, start: int, stop: int) -> EventBatch:
        """Return the events of a partition from one offset up to another."""
        topic, _, index = partition.rpartition("-")
        batch = self.events[topic][int(index)]
        return batch[slice(*np.searchsorted(batch.offsets, [start, stop]))]


class Office:
    """Operator and registry: commands in the order of their ids, versions by shard and number."""

    def __init__(self, rng: random.Random, partitions: list[str], commands: int) -> None:
        self.left = commands
        self.orders: list[Order] = []
        self.store: dict[tuple[str, int], bytes] = {}
        self._rng = rng
        self._partitions = partitions
        self._made = 0

    def next(self, after: int, *, urgent: bool) -> Order | None:
        """Return the command after one, if a shard gets it now."""
        if self.left and (urgent or self._rng.random() < 0.15):
            self.left -= 1
            self.orders.append(self._order())
        if not urgent and self._rng.random() < 0.5:
            return None
        return next((order for order in self.orders if order.id > after), None)

    def _order(self) -> Order:
        rng = self._rng
        number = (self.orders[-1].id if self.orders else 0) + rng.choice([1, 2])
        kind = rng.choice(["snapshot", "restore", "rewind", "rewind", "promote"])
        if kind == "snapshot" or not self._made:
            self._made += 1
            return Order(number, "snapshot", version=self._made)
        version = rng.randint(1, self._made)
        if kind != "rewind":
            return Order(number, kind, version=version, catch_up=rng.choice([0, 5, 100]))
        first = rng.randrange(30)
        ranges = ((rng.choice(self._partitions), first, first + rng.choice([0, 10])),)
        sources = tuple(rng.sample(NAMED, rng.choice([0, 1])))
        return Order(number, kind, version=version, ranges=ranges, sources=sources)

    def fetch(self, shard: str, version: int, outbox: Outbox) -> Snapshot:
        if version in outbox.versions():
            return outbox.read(version)
        if (shard, version) not in self.store:
            raise RefusedError(f"version {version} is not there")
        return unpack(self.store[shard, version], str(version))

    def deliver(self, shard: str, outbox: Outbox) -> None:
        """Take what is in an outbox to the store."""
        for version in outbox.versions():
            data = pack(outbox.read(version))
            known = self.store.setdefault((shard, version), data)
            assert known == data, "a version was made again, and is another one"
            outbox.remove(version)

    def check(self, shard: str, fold: Fold) -> None:
        """Each command is in the journal once, and versions are those of the fold."""
        got = [(command.id, command.kind) for command in fold.commands.values()]
        assert got == [(order.id, order.kind) for order in self.orders], "commands differ"
        for command in fold.commands.values():
            assert "the journal begins" not in command.refused, "all of it is there"
        for (name, version), data in self.store.items():
            if name == shard:
                part, kept = unpack(data, str(version)), fold.versions[version]
                assert (part.header["seq"], part.header["digest"]) == (kept.seq, kept.digest)
                assert part.parts == kept.parts


def lived(seed: int, *, outage_at_first: float = 0.0, joins: bool = False) -> Life:
    """Live and check what a seed has in store: one shard, one of two partitions, or two shards."""
    partitions, single = [(1, True), (1, True), (2, True), (2, False)][seed % 4]
    commands = [0, 0, 4][seed // 4 % 3]
    life = Life(seed, partitions=partitions, single=single, commands=commands, joins=joins)
    life.cluster.outage_at_first = outage_at_first
    life.cluster.markers = [0.5, 0.03, 0.5][seed % 3]
    life.run()
    life.check()
    return life
