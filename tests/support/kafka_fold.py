"""The fold of a journal on Kafka, commands and all, over the input as it is in the topic."""

import json
from collections import defaultdict
from typing import NamedTuple

import journal_fold
import msgspec
import numpy as np

from midstream.connectors.encode.outputs import encode_alarms, encode_predictions
from midstream.connectors.kafka.messages import MessageBlock, MessageDecoder, Messages
from midstream.engine.shard.journal import Range, Record
from midstream.flows.config.factory import model_modules
from midstream.flows.loading import load
from midstream.flows.running.definition import make_trainer


class Fold(NamedTuple):
    """What a journal says: digest by shard, and what has to be in the outputs, sorted."""

    digest: dict[str, str]
    learned: int
    predictions: list[str]
    rejected: list[tuple]
    alarms: list[tuple]


def fold(kafka, config) -> Fold:
    """Fold every partition of the journal over a new trainer, and over the input as it is now.

    Predictions are those that were published: when their events were new, with the version then.
    """
    settings = load(config)
    inputs = defaultdict(list)
    for message in kafka.read_all(settings.input.topic):
        inputs[f"{message.topic}-{message.partition}"].append(message)
    journals = defaultdict(list)
    for message in kafka.read_all(settings.journal_topic):
        journals[message.partition].append(msgspec.json.decode(message.value, type=Record))
    digest, predictions, rejected, alarms, learned = {}, [], [], [], 0
    decoder = MessageDecoder(settings.model.task, None, settings.features, 2**20)

    def decoded(partition, start, stop):
        messages = [m for m in inputs[partition] if start <= m.offset < stop]
        return decoder.decode(_block(messages, partition, start, stop))

    def put_out(batch, step, version):
        nonlocal predictions, alarms
        lines = encode_predictions(
            batch,
            step.predictions,
            task=settings.model.task,
            model=settings.name,
            version=version,
            role="champion",
        )
        predictions += lines.decode().splitlines()
        alarms += _alarms(encode_alarms(step.alarms).decode().splitlines())

    for index, records in sorted(journals.items()):
        state = journal_fold.Fold(
            lambda: make_trainer(settings),
            lambda *span: decoded(*span).batch,
            learned=put_out,
            most=1_000,  # however it is cut, the result is the same
            modules=model_modules(settings),
        )
        state.apply(records)
        digest[f"{index:03d}"] = state.digest()
        learned += state.trainer.learned
        for entry in (entry for record in records for entry in record.entries):
            if isinstance(entry, Range):
                found = decoded(entry.partition, entry.start, entry.stop)
                rejected += [(*r.origin, r.reason) for r in found.rejected]
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


def _block(messages, partition, start, stop) -> MessageBlock:
    topic, _, index = partition.rpartition("-")
    read = Messages(
        [message.value for message in messages],
        np.array([message.offset for message in messages], np.int64),
        [message.timestamp for message in messages],
    )
    return MessageBlock(topic, int(index), read, start, stop)
