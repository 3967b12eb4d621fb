"""The input of a config with feedback: events, and labels that come later."""

from collections.abc import Collection

import msgspec

from midstream.connectors.aligned import AlignedInputs
from midstream.connectors.decode.decoder import Decoding
from midstream.connectors.decode.fields import FieldMap
from midstream.connectors.input import Decoded, Input, InputError
from midstream.engine.events.event import Rejected
from midstream.flows.config.settings import FeedbackFields, Settings
from midstream.flows.inputs.catalogue import kind_of
from midstream.flows.inputs.kind import Source

__all__ = ["as_feedback", "connect", "feedback_settings", "label_fields"]


def connect(settings: Settings, *, until_eof: bool) -> Source:
    """Return the source of the events, and of the feedback if there is any.

    Raises
    ------
    InputError
        As for the kinds of the two.
    """
    events = kind_of(settings.input).connect(settings, until_eof=until_eof)
    labels = feedback_settings(settings)
    if labels is None:
        return events
    try:
        feedback = kind_of(labels.input).connect(labels, until_eof=until_eof)
    except BaseException:
        events.close()
        raise
    return _Source(settings, events, labels, feedback)


def feedback_settings(settings: Settings) -> Settings | None:
    """Return settings whose input is the feedback; None if feedback has no input of its own."""
    feedback = settings.feedback
    if feedback is None or (feedback.topic is None and feedback.path is None):
        return None
    fields = feedback.fields
    source = msgspec.structs.replace(
        settings.input,
        topic=feedback.topic,
        path=feedback.path,
        kind=None,
        options={},
        format=feedback.format,
        shards=1 if settings.one_shard else "partition",
        fields=label_fields(fields),
    )
    return msgspec.structs.replace(settings, input=source, features={}, feedback=None)


def label_fields(fields: FeedbackFields) -> FieldMap:
    """Return the meaning of the fields of feedback, for the decoders.

    A record of feedback has no features; its id stands for them, so that it is not empty.
    """
    return FieldMap(
        id=fields.id,
        label=fields.label,
        time=fields.time,
        source=fields.source,
        weight=fields.weight,
        features=[fields.id],
        missing=fields.missing,
        decimal=fields.decimal,
        time_unit=fields.time_unit,
    )


class _Source(Source):
    """Opens the inputs of a shard: its events, and the feedback for them."""

    def __init__(
        self, settings: Settings, events: Source, labels: Settings, feedback: Source
    ) -> None:
        self._settings = settings
        self._labels = labels
        self._events = events
        self._feedback = feedback
        self._paired: dict[str, str] = {}  # partition of the events -> that of their labels
        self.numbered = events.numbered  # type: ignore[misc]
        self.descriptors = events.descriptors + feedback.descriptors

    def partitions(self) -> list[str]:
        """Return the partitions of the events.

        Raises
        ------
        InputError
            If the feedback has not as many, where each partition is a shard.
        """
        found = self._events.partitions()
        if not self._settings.one_shard:
            others = self._feedback.partitions()
            if len(others) != len(found):
                raise InputError(
                    f"feedback.topic {self._labels.input.topic} has {len(others)} partitions, and "
                    f"input.topic {self._settings.input.topic} has {len(found)}: the label of an "
                    "event must be in the partition of the same number, by the same key; give both "
                    "as many partitions, or have one shard (input.shards = 1)"
                )
            self._paired = dict(zip(found, others, strict=True))
        return found

    def open(self, part: str | None, decoding: Decoding, *, added: bool = False) -> Input:
        """Return the events and the feedback of one shard, as one input."""
        other = part
        if part is not None:
            if part not in self._paired:
                self.partitions()
            other = self._paired[part]
        assert self._labels.input.fields is not None
        own = Decoding(
            self._labels.model.task,
            self._labels.input.fields,
            labels=self._labels.model.labels,
            max_record_bytes=self._labels.input.max_record_bytes,
        )
        events = self._events.open(part, decoding, added=added)
        try:
            feedback = self._feedback.open(other, own, added=added)
            settings = self._settings.feedback
            return AlignedInputs(
                {"feedback": feedback, "events": events},
                exact=settings is not None and settings.order == "exact",
                decoded={"feedback": as_feedback},
            )
        except BaseException:
            events.close()
            raise

    def is_new(self, partition: str, known: Collection[str]) -> bool:
        """Whether a partition of the events is new."""
        return self._events.is_new(partition, known)

    def look(self, known: Collection[str]) -> list[str]:
        """Return new partitions of the events."""
        return self._events.look(known)

    def close(self) -> None:
        """Close both."""
        try:
            self._events.close()
        finally:
            self._feedback.close()


def as_feedback(decoded: Decoded) -> Decoded:
    """Return decoded records as labels for events that were predicted before."""
    decoded.batch.is_feedback = True
    rejected = [
        Rejected(r.origin, "feedback without an id", r.path, r.raw, r.ts)
        if r.reason == "no features"
        else r
        for r in decoded.rejected
    ]
    return Decoded(decoded.batch, rejected)
