"""The fold of a journal on Kafka, by a loop that knows nothing of shards and their resuming."""

import json
from collections import defaultdict
from typing import NamedTuple

import msgspec
import numpy as np

from midstream.connectors.codec import encode_alarms, encode_predictions
from midstream.connectors.messages import MessageBlock, MessageDecoder, Messages
from midstream.engine.journal import Record
from midstream.flows.rooms import make_trainer
from midstream.flows.settings import load


class Fold(NamedTuple):
    """What a journal says: digest by shard, and what has to be in the outputs, sorted."""

    digest: dict[str, str]
    learned: int
    predictions: list[str]
    rejected: list[tuple]
    alarms: list[tuple]


def fold(kafka, config) -> Fold:
    """Fold every partition of the journal over a new trainer, and over the input as it is now."""
    settings = load(config)
    inputs = defaultdict(list)
    for message in kafka.read_all(settings.input.topic):
        inputs[f"{message.topic}-{message.partition}"].append(message)
    journals = defaultdict(list)
    for message in kafka.read_all(settings.journal_topic):
        journals[message.partition].append(msgspec.json.decode(message.value, type=Record))
    digest, predictions, rejected, alarms, learned = {}, [], [], [], 0
    for index, records in sorted(journals.items()):
        assert [record.seq for record in records] == list(range(len(records)))
        trainer, at = make_trainer(settings), defaultdict(int)
        decoder = MessageDecoder(settings.model.task, None, settings.features, 2**20)
        for span in (entry for record in records for entry in record.entries):
            assert at[span.partition] == span.start, "a range does not begin where the last ended"
            at[span.partition] = span.stop
            # One by one: however it was cut, the result is the same.
            messages = [m for m in inputs[span.partition] if span.start <= m.offset < span.stop]
            if not messages:
                continue
            decoded = decoder.decode(_block(messages, span))
            result = trainer.step(decoded.batch)
            predictions += (
                encode_predictions(
                    decoded.batch,
                    result.predictions,
                    task=settings.model.task,
                    model=settings.name,
                    version=0,
                    role="champion",
                )
                .decode()
                .splitlines()
            )
            rejected += [(*r.origin, r.reason) for r in decoded.rejected]
            alarms += _alarms(encode_alarms(result.alarms).decode().splitlines())
        digest[f"{index:03d}"] = trainer.digest()
        learned += trainer.learned
    return Fold(digest, learned, sorted(predictions), sorted(rejected), sorted(alarms))


def published(topics) -> tuple[list[str], list[tuple], list[tuple]]:
    """Return what is in the output topics, as `Fold` has it."""
    read = {
        kind: [message.value.decode() for message in topics.kafka.read_all(topics.names[kind])]
        for kind in ("predictions", "rejected", "alarms")
    }
    rejected = [json.loads(line) for line in read["rejected"]]
    return (
        sorted(read["predictions"]),
        sorted((*r["origin"], r["reason"]) for r in rejected),
        sorted(_alarms(read["alarms"])),
    )


def _alarms(lines):
    alarms = map(json.loads, lines)
    return [(a["detector"], a["position"], a["value"], a["threshold"]) for a in alarms]


def _block(messages, span) -> MessageBlock:
    topic, _, index = span.partition.rpartition("-")
    read = Messages(
        [message.value for message in messages],
        np.array([message.offset for message in messages], np.int64),
        [message.timestamp for message in messages],
    )
    return MessageBlock(topic, int(index), read, span.start, span.stop)
