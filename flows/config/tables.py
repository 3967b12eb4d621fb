"""Converts TOML tables to frozen structs; reports errors that a user can act on.

Every error is a `ConfigError` of one line: the file, the key, what was found and what is allowed.
What is allowed is read from the types, so it cannot be out of date.
"""

import datetime as dt
import difflib
import os
import re
import textwrap
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import msgspec
from msgspec import inspect

from midstream.engine.basics.errors import ExpectedError
from midstream.engine.basics.masking import hide_value, masked

__all__ = ["ConfigError", "ConfigReader", "nearest", "repr_without"]

_S = TypeVar("_S", bound=msgspec.Struct)
_NUMBER = re.compile(r"[-+]?[0-9.]+")  # a port, a count: masking it would also mask other numbers
_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_]\w*)(?::-([^{}]*))?\}|\$\{", re.ASCII)


class ConfigError(ExpectedError, ValueError):
    """A config that cannot be used: one line with the file, the key and what is allowed."""

    exit_code = exit_code_running = 2

    def __init__(self, text: str) -> None:
        super().__init__(masked(text))


class ConfigReader:
    """Reads one TOML file to typed tables, and makes the errors.

    Parameters
    ----------
    file
        The file.
    words
        Descriptions of the patterns of string types.
    """

    def __init__(self, file: Path, words: Mapping[str, str]) -> None:
        self.file = file
        self.hidden: dict[str, str] = {}
        """Values that no message may show, by key; initially those from the environment."""
        self._words = words
        self._from_environment: set[str] = set()

    def read(self) -> dict[str, Any]:
        """Return the file's tables, with environment variables substituted.

        Raises
        ------
        ConfigError
            If it cannot be read, is not TOML, or a variable is not set.
        """
        try:
            text = self.file.read_bytes().decode("utf-8-sig")
        except FileNotFoundError:
            raise ConfigError(f"{self.file}: there is no such file") from None
        except IsADirectoryError:
            raise ConfigError(f"{self.file}: is a folder; give the TOML file itself") from None
        except UnicodeDecodeError as e:
            why = f"not UTF-8 (at byte {e.start}); save it as UTF-8"
            raise ConfigError(f"{self.file}: {why}") from None
        except OSError as e:
            raise ConfigError(f"{self.file}: cannot be read: {e.strerror}") from None
        if not text.strip():
            raise ConfigError(f"{self.file}: the file is empty; it needs [model] and [input]")
        try:
            raw = tomllib.loads(text)
        except tomllib.TOMLDecodeError as e:
            what, _, where = str(e).removesuffix(")").rpartition(" (at ")
            if where == "end of document":
                last = text.splitlines()[-1]
                where = f"line {len(text.splitlines())}, column {len(last) + 1}"
            raise ConfigError(f"{self.file}: {where}: no TOML: {what}") from None
        except RecursionError:
            raise ConfigError(f"{self.file}: tables are nested too deeply") from None
        return {key: self._expand(value, key) for key, value in raw.items()}

    def _expand(self, value: object, key: str) -> object:
        """Substitute variables in every string, and record the keys of these strings."""
        if isinstance(value, dict):
            return {k: self._expand(v, f"{key}.{k}") for k, v in value.items()}
        if isinstance(value, list):
            return [self._expand(v, f"{key}[{i}]") for i, v in enumerate(value)]
        if not isinstance(value, str):
            return value

        def replace(match: re.Match[str]) -> str:
            name, default = match.groups()
            if match[0] == "$${":
                return "${"
            if name is None:
                allowed = "${VAR}, ${VAR:-default} without braces in it, $${ for the signs as such"
                raise self.error(key, f"'${{' begins no variable here; allowed: {allowed}")
            found = os.environ.get(name)
            if found and not _NUMBER.fullmatch(found):
                hide_value(found)
            if found is None and default is None:
                remedy = f"set it, or give a default: ${{{name}:-...}}"
                raise self.error(key, f"the environment variable {name} is not set; {remedy}")
            return found or default or ""

        expanded = _VARIABLE.sub(replace, value)
        if any(match[1] for match in _VARIABLE.finditer(value)):
            self._from_environment.add(key)
            self.hidden[key] = expanded
        return expanded

    def error(self, key: str, text: str) -> ConfigError:
        """Return an error about a key."""
        return ConfigError(f"{self.file}: {key}: {text}")

    def refusal(
        self, key: str, value: object, allowed: str, words: Iterable[object] = ()
    ) -> ConfigError:
        """Return the error that a value is not allowed; `words` are the allowed values."""
        if self._hides(key):
            return self.found(key, value, f"allowed: {allowed}")
        near = ""
        if isinstance(value, str):
            near = nearest(value, [word for word in words if isinstance(word, str)])
        if near:
            return self.error(key, f"found {_shown(value)}{near} Allowed: {allowed}")
        return self.found(key, value, f"allowed: {allowed}")

    def found(self, key: str, value: object, why: str) -> ConfigError:
        """Return the error that a value is not allowed, and why."""
        return self.error(key, f"found {'***' if self._hides(key) else _shown(value)}; {why}")

    def _hides(self, key: str) -> bool:
        inner = (f"{key}.", f"{key}[")
        return any(hidden == key or hidden.startswith(inner) for hidden in self.hidden)

    def unknown(self, at: str, key: str, known: Iterable[str]) -> ConfigError:
        """Return the error that the table `at` has no such key."""
        known = list(known)
        near = nearest(key, known) or "."
        return self.error(_join(at, key), f"unknown key{near} Known keys: {', '.join(known)}")

    def table(self, cls: type[_S], raw: Mapping[str, Any], at: str = "", **given: object) -> _S:
        """Convert a table to `cls`, whose fields, except `given` ones, are its keys.

        Raises
        ------
        ConfigError
            If a key is unknown or missing, or its value has another type.
        """
        fields = {f.encode_name: f for f in msgspec.structs.fields(cls) if f.name not in given}
        for key in raw:
            if key not in fields:
                raise self.unknown(at, key, fields)
        values = dict(given)
        for key, field in fields.items():
            if key in raw:
                values[field.name] = self._value(raw[key], field.type, _join(at, key))
            elif field.required:
                needed = self._allowed(inspect.type_info(field.type))
                raise self.error(_join(at, key), f"missing; needed: {needed}")
        try:
            return cls(**values)
        except (TypeError, ValueError) as e:  # raised by a struct itself
            text = str(e)
            for key, value in self.hidden.items():
                if value and key.startswith(f"{at}."):
                    text = text.replace(value, "***")
            raise self.error(at, text) from None

    def _value(self, raw: object, kind: Any, key: str) -> object:
        parts = [part for part in get_args(kind) if part is not type(None)]
        if len(parts) == 1 and type(None) in get_args(kind):  # kind is optional
            kind = parts[0]
            parts = [*get_args(kind)]
        info = inspect.type_info(kind)
        if isinstance(info, inspect.StructType) and isinstance(raw, dict):
            return self.table(kind, raw, key)
        if isinstance(info, inspect.DictType) and isinstance(raw, dict):
            return {k: self._value(v, parts[1], f"{key}.{k}") for k, v in raw.items()}
        if isinstance(info, inspect.ListType | inspect.VarTupleType) and isinstance(raw, list):
            items = [self._value(v, parts[0], f"{key}[{i}]") for i, v in enumerate(raw)]
            return get_origin(kind)(items)
        # A value from the environment is text, but may be meant as a number.
        for strict in (True, False) if key in self._from_environment else (True,):
            try:
                return msgspec.convert(raw, kind, strict=strict)
            except msgspec.ValidationError:
                continue
        words = info.values if isinstance(info, inspect.LiteralType) else ()
        raise self.refusal(key, raw, self._allowed(info), words)

    def _allowed(self, info: inspect.Type) -> str:
        """Return in words what a type allows."""
        match info:
            case inspect.UnionType(types=types):
                words = [self._allowed(t) for t in types if not isinstance(t, inspect.NoneType)]
                if "a number" in words and "a whole number" in words:
                    words.remove("a whole number")
                return " or ".join(words)
            case inspect.LiteralType(values=values):
                return " | ".join(map(repr, values))
            case inspect.BoolType():
                return "true | false"
            case inspect.StrType(pattern=str(pattern)):
                return self._words[pattern]
            case inspect.StrType(min_length=least):
                return "a string, not empty" if least else "a string"
            case inspect.IntType(ge=low, le=high):
                return "a whole number" + ("" if low is None else f" from {low} to {high}")
            case inspect.FloatType(gt=gt, ge=ge, lt=lt, le=le):
                bounds = {">": gt, ">=": ge, "<": lt, "<=": le}
                texts = [f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None]
                return " ".join(["a number", *" and ".join(texts).split()])
            case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
                return f"a list, each of it {self._allowed(item)}"
            case inspect.DictType(value_type=item):
                return f"a table, each value {self._allowed(item)}"
            case inspect.StructType(fields=fields):
                return f"a table with the keys {', '.join(f.encode_name for f in fields)}"
        raise AssertionError(f"no words for {info}")


def _join(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key


def _shown(value: object) -> str:
    """Format a value approximately as in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    return textwrap.shorten(repr(value), 100, placeholder="...")


def repr_without(value: object, hidden: Collection[str], key: str = "") -> str:
    """Return the repr of a value, with the values of hidden keys masked."""
    if key in hidden:
        return "'***'"
    if isinstance(value, msgspec.Struct):
        inner = {
            f: repr_without(getattr(value, f), hidden, _join(key, f))
            for f in value.__struct_fields__
        }
        return f"{type(value).__name__}({', '.join(f'{f}={text}' for f, text in inner.items())})"
    if isinstance(value, dict):
        texts = [f"{k!r}: {repr_without(v, hidden, _join(key, k))}" for k, v in value.items()]
        return f"{{{', '.join(texts)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(repr_without(v, hidden, f'{key}[{i}]') for i, v in enumerate(value))}]"
    return repr(value)


def nearest(word: str, options: Iterable[str]) -> str:
    """Return "; did you mean ...?" if one of the options is similar, else an empty string."""
    near = difflib.get_close_matches(word, list(options), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
