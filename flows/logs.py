"""Logs for operators: one event per line, on standard error, as key=value or JSON."""

import logging
import re
import sys
import time
from typing import Any, TextIO

import msgspec

from midstream.engine.basics.masking import masked, masked_values

__all__ = ["Log", "configure", "log"]

_PLAIN = re.compile(r"[\w.+:/@%,-]+\Z")


class Log:
    """Logs events by name, with fields: `log.info("snapshot", shard="000", seq=7)`."""

    def __init__(self, name: str = "midstream") -> None:
        self._logger = logging.getLogger(name)
        self._always: dict[str, Any] = {}

    def always(self, **fields: Any) -> None:
        """Add fields to each event from now on."""
        self._always |= fields

    def info(self, event: str, **fields: Any) -> None:
        """Log what an operator may want to know."""
        self._logger.info(event, extra={"fields": self._always | fields})

    def warning(self, event: str, **fields: Any) -> None:
        """Log what an operator should know."""
        self._logger.warning(event, extra={"fields": self._always | fields})

    def error(self, event: str, **fields: Any) -> None:
        """Log what stops the work."""
        self._logger.error(event, extra={"fields": self._always | fields})


class _Formatter(logging.Formatter):
    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of an event."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if self._json:
            plain = msgspec.to_builtins(fields, enc_hook=str)
            return msgspec.json.encode(masked_values(plain)).decode()
        return masked(" ".join(f"{k}={_text(v)}" for k, v in fields.items()))


def _text(value: Any) -> str:
    text = str(value)
    return text if _PLAIN.match(text) else msgspec.json.encode(text).decode()


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 its name there
        """Continue: standard error cannot be written, and there is no other place to report it."""


def configure(stream: TextIO | None = None, *, as_json: bool = False) -> None:
    """Send the events to `stream`, by default standard error."""
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(_Formatter(as_json=as_json))
    logger = logging.getLogger("midstream")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


log = Log()
