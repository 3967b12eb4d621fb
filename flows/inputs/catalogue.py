"""The kinds of input that a config may name: Midstream's own, and those of other packages."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from midstream.connectors.input import InputError
from midstream.flows.config.settings import Input as InputSection
from midstream.flows.config.settings import Settings
from midstream.flows.config.tables import ConfigReader
from midstream.flows.inputs.file_kind import FileKind
from midstream.flows.inputs.kind import InputKind
from midstream.flows.inputs.topic_kind import TopicKind

__all__ = ["BUILTIN", "GROUP", "check_input", "kind_of"]

GROUP = "midstream.inputs"
"""The entry-point group of input kinds: subclasses of `InputKind`."""
BUILTIN: Mapping[str, InputKind] = {kind.name: kind for kind in (TopicKind(), FileKind())}
"""Midstream's own kinds; a package cannot replace them."""


def kind_of(source: InputSection) -> InputKind:
    """Return the kind of an input: that in `kind`, else the one that recognises the settings.

    Raises
    ------
    InputError
        If no package provides a kind of this name, or it cannot be loaded.
    """
    if source.kind is None:
        return next(kind for kind in BUILTIN.values() if kind.recognises(source))
    if source.kind in BUILTIN:
        return BUILTIN[source.kind]
    points = list(entry_points(group=GROUP, name=source.kind))
    if not points:
        raise InputError(f"no installed package brings an input of kind {source.kind!r}")
    if len({point.value for point in points}) > 1:
        where = ", ".join(sorted(_place(point) for point in points))
        raise InputError(f"several packages bring an input of kind {source.kind!r}: {where}")
    return _loaded(points[0])


def check_input(settings: Settings, reader: ConfigReader) -> None:
    """Check the config's settings of its input, by its kind.

    Raises
    ------
    ConfigError
        If they name no kind, or contain what the kind does not allow.
    """
    source = settings.input
    said = [kind for kind in BUILTIN.values() if kind.recognises(source)]
    if source.kind is None:
        if len(said) != 1:
            found = "both" if said else "neither"
            raise reader.error(
                "input", f"found {found} of topic and path; allowed: exactly one of them"
            )
        said[0].check(settings, reader)
        return
    try:
        kind = kind_of(source)
    except InputError as error:
        known = [*BUILTIN, *sorted({point.name for point in entry_points(group=GROUP)})]
        allowed = " | ".join(map(repr, known))
        raise reader.refusal("input.kind", source.kind, f"{allowed}; {error}", known) from None
    for other in said:
        if other.name != kind.name:
            key = "topic" if source.topic is not None else "path"
            raise reader.error(
                f"input.{key}", f"is not for input of kind {kind.name!r}; leave it out"
            )
    kind.check(settings, reader)


def _place(point: EntryPoint) -> str:
    return f"{point.value} ({point.dist.name})" if point.dist is not None else point.value


def _loaded(point: EntryPoint) -> InputKind:
    try:
        found = point.load()
    except Exception as error:  # noqa: BLE001 whatever somebody else's module raises
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{_place(point)} cannot be loaded: {why}") from None
    if not (isinstance(found, type) and issubclass(found, InputKind)):
        raise InputError(f"{_place(point)} is no class that is derived from InputKind")
    try:
        kind = found()
    except TypeError as error:  # a method is missing
        raise InputError(f"{_place(point)}: {error}") from None
    if getattr(kind, "name", None) != point.name:
        raise InputError(f"{_place(point)}: its `name` is not {point.name!r}")
    return kind
