"""Write the generated parts of the pages on configuration and commands.

The keys of a config come from the structs that read it: their types, their defaults and the
`Attributes` sections of their docstrings. The commands come from click. `make docs` runs this
script; a test compares the pages with what it would write.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
from msgspec import NODEFAULT, UNSET

from midstream.flows.cli import cli
from midstream.flows.config.gateway import Gateway
from midstream.flows.config.settings import Feedback, Input, Settings

__all__ = ["Key", "commands", "commands_of", "configuration", "keys_of", "pages"]

_DOCS = Path(__file__).parent
_BEGIN, _END = "<!-- generated: begin -->", "<!-- generated: end -->"
_NOT_KEYS = {"file", "named", "hidden"}  # what a `Settings` holds besides the keys of a config
_FROM_FILE = {"name": "the file's name"}  # defaults that the struct itself does not know


class Key(NamedTuple):
    """A key of a config: its table ("" at the top), name, type, default and meaning."""

    table: str
    name: str
    kind: str
    default: str
    meaning: str

    @property
    def path(self) -> str:
        """The key with its table, as messages name it."""
        return f"{self.table}.{self.name}" if self.table else self.name


def attributes_of(struct: type) -> dict[str, str]:
    """Return the meaning of each attribute by the `Attributes` section of a docstring."""
    lines = inspect.cleandoc(struct.__doc__ or "").splitlines()
    found: dict[str, str] = {}
    names: list[str] = []
    start = lines.index("Attributes") + 2 if "Attributes" in lines else len(lines)
    for line in lines[start:]:
        if line and not line.startswith(" "):
            names = [name.strip() for name in line.split(" : ")[0].split(",")]
        elif line.strip():
            for name in names:
                found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found


def keys_of(struct: type[msgspec.Struct] = Settings, table: str = "") -> Iterator[Key | str]:
    """Yield each key of a config; before the keys of a table, its name and what it is for."""
    meanings = attributes_of(struct)
    tables: list[tuple[str, type[msgspec.Struct]]] = []
    for field in msgspec.structs.fields(struct):
        if struct is Settings and field.name in _NOT_KEYS:
            continue
        info = msgspec.inspect.type_info(field.type)
        inner = _struct_in(info)
        if inner is not None:
            each = ".NAME" if _in_dict(info) else ""
            tables.append((f"{table}.{field.name}{each}".lstrip("."), inner))
            continue
        yield Key(
            table, field.encode_name, _words(info), _default(field, table), meanings[field.name]
        )
    for name, inner in tables:
        yield name
        yield from keys_of(inner, name)


def _struct_in(info: msgspec.inspect.Type) -> type[msgspec.Struct] | None:
    kinds = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    if _in_dict(info):
        kinds = (info.value_type,)
    return next((k.cls for k in kinds if isinstance(k, msgspec.inspect.StructType)), None)


def _in_dict(info: Any) -> bool:
    """Whether a key is a table of tables, each under a name of its own."""
    i = msgspec.inspect
    return isinstance(info, i.DictType) and isinstance(info.value_type, i.StructType)


def _default(field: Any, table: str) -> str:
    if not table and field.name in _FROM_FILE:
        return _FROM_FILE[field.name]
    if field.default is NODEFAULT and field.default_factory is NODEFAULT:
        return "required"
    value = field.default if field.default is not NODEFAULT else field.default_factory()
    return "none" if value is None or value is UNSET else f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    """Return a value as TOML shows it."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return f"{value:_}" if value >= 10_000 else str(value)
        case float():
            return f"{value:_}" if value >= 10_000 else repr(value)
        case str():
            return f'"{value}"'
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
    return "{}" if not value else repr(value)


def _words(info: msgspec.inspect.Type) -> str:
    """Say in Markdown what a type allows."""
    i = msgspec.inspect
    match info:
        case i.UnionType(types=types):
            words = [_words(kind) for kind in types if not isinstance(kind, i.NoneType)]
            if "number" in words and "integer" in words:
                words.remove("integer")
            return " or ".join(dict.fromkeys(words))
        case i.LiteralType(values=values):
            return ", ".join(f"`{_toml(value)}`" for value in sorted(values, key=_order))
        case i.BoolType():
            return "boolean"
        case i.StrType(pattern=str()):
            return "`module:function` or the name of a built-in learner"
        case i.StrType():
            return "string"
        case i.IntType(ge=low, le=high):
            return "integer" + ("" if low is None else f" from {low:_} to {_large(high)}")
        case i.FloatType(gt=gt, ge=ge, lt=lt, le=le):
            bounds = {"above": gt, "at least": ge, "below": lt, "at most": le}
            texts = [f"{word} {bound:,g}" for word, bound in bounds.items() if bound is not None]
            return f"number {', '.join(texts)}".strip()
        case i.ListType(item_type=item) | i.VarTupleType(item_type=item):
            return f"list of {_words(item)}"
        case i.DictType(value_type=item):
            return f"table of {_words(item)}"
        case i.AnyType():
            return "any value"
    raise AssertionError(f"no words for {info}")


def _order(value: Any) -> tuple[bool, str]:
    return isinstance(value, str), str(value)


def _large(number: int | None) -> str:
    if number is not None and number >= 2**20:
        for power in range(20, 65):
            if number in (2**power, 2**power - 1):
                return f"2^{power}" + "-1" * (number < 2**power)
    return f"{number:_}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def configuration() -> str:
    """Return the tables of all keys."""
    lines: list[str] = []
    heads = attributes_of(Settings)
    heads["input.fields"] = attributes_of(Input)["fields"]
    heads["feedback.fields"] = attributes_of(Feedback)["fields"]
    for name in ("raw", "repartition"):
        heads[f"gateway.{name}.NAME"] = attributes_of(Gateway)[name]
    lines += ["## The top of the file", "", *_HEAD]
    for item in keys_of():
        if isinstance(item, str):
            lines += ["", f"## `[{item}]`", "", heads[item], "", *_HEAD]
            continue
        kind, meaning = _cell(item.kind), _cell(item.meaning)
        lines.append(f"| `{item.name}` | {kind} | {_cell(item.default)} | {meaning} |")
    return "\n".join(lines)


_HEAD = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]


def commands_of(
    command: click.Command = cli, path: tuple[str, ...] = ("midstream",)
) -> Iterator[tuple[str, click.Command]]:
    """Yield each command with its full name, a group before its commands."""
    yield " ".join(path), command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            if not inner.hidden:
                yield from commands_of(inner, (*path, name))


def commands() -> str:
    """Return a section for each command: what it does, its arguments and its options."""
    lines: list[str] = []
    for name, command in commands_of():
        context = click.Context(command, info_name=name)
        pieces = [piece for piece in command.collect_usage_pieces(context) if piece]
        lines += [f"## `{name}`", "", "```text", " ".join([name, *pieces]), "```", ""]
        text = inspect.cleandoc(command.help or "").replace("\b\n", "")
        lines += [_marked(text), ""]
        shown = [p for p in command.get_params(context) if isinstance(p, click.Option)]
        rows = [row for option in shown if (row := _option(option, context))]
        if rows:
            lines += ["| option | meaning |", "| --- | --- |", *rows, ""]
    return "\n".join(lines).rstrip()


def _option(option: click.Option, context: click.Context) -> str | None:
    record = option.get_help_record(context)
    if record is None or "--help" in option.opts:  # hidden, or the same everywhere
        return None
    names, meaning = record
    return f"| `{_cell(names)}` | {_cell(meaning)} |"


def _marked(text: str) -> str:
    """Mark options and names of commands as code, as the pages do."""
    return re.sub(r"(?<![`\w-])(--[a-z][a-z-]*)", r"`\1`", text)


def pages() -> dict[Path, str]:
    """Return the pages that have a generated part, with that part as it should be."""
    parts = {"configuration.md": configuration(), "commands.md": commands()}
    made = {}
    for name, text in parts.items():
        page = _DOCS / name
        before, begin, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
        _, end, after = rest.partition(_END)
        if not (begin and end):
            raise SystemExit(f"{page}: has no part between {_BEGIN} and {_END}")
        made[page] = f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}"
    return made


def main() -> None:
    """Write the pages that differ."""
    for page, text in pages().items():
        if page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {page}\n")


if __name__ == "__main__":
    main()
