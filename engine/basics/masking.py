"""Keep secrets that a config names, and credentials in URLs, out of messages.

Only this module masks. Code that reads a secret calls `hide`; all output for people (logs, error
lines, findings, reports) passes through `masked`.
"""

import json
import re
import threading
from typing import Any
from urllib.parse import quote, unquote

import msgspec

__all__ = [
    "credentials",
    "hide",
    "hide_credentials",
    "hide_value",
    "masked",
    "masked_values",
    "reveal",
]

_CREDENTIALS = re.compile(r"(?<=://)[^\s'\"<>/:@]*:[^\s'\"<>]*@")
# The same for a text that is all URL, whatever its password contains.
_OF_ALL = re.compile(r"[A-Za-z][\w+.-]*://([^/:@]*:.*)@", re.DOTALL)
_SHORTEST = 3  # characters: masking each "1" or "on" would make every line unreadable
_SHORTEST_VALUE = 6  # ... for a value that is not known to be secret
_SHORT = 8  # a shorter secret is masked as a whole word only
_PLAIN = {"true", "false", "none", "null"}

_lock = threading.Lock()
_known: set[str] = set()
_pattern: re.Pattern[str] | None = None


def credentials(text: str) -> str:
    """Return the `USER:PASSWORD` of a URL; empty if it has no password.

    It ends at the last `@`: one in a password that is not written as `%40` belongs to it.
    """
    if whole := _OF_ALL.match(text):
        return whole[1]
    found = _CREDENTIALS.search(text)
    return found[0][:-1] if found else ""


def hide_value(text: str) -> None:
    """Hide a text that may be a secret, from six characters on, so as not to hide words."""
    if len(text) >= _SHORTEST_VALUE:
        hide(text)


def hide(secret: str) -> None:
    """Make `masked` replace a text by three stars from now on, in each form it may take.

    The forms are: as it is, on one line, percent-encoded, percent-decoded, and escaped as in JSON
    and in Python. A text of fewer than three characters, or a truth value, is too common in other
    text: it is hidden only where its key is known.
    """
    forms = set()
    for text in (secret, unquote(secret)):
        forms |= {
            text,
            " ".join(text.split()),
            quote(text),
            quote(text, safe=""),
            json.dumps(text)[1:-1],
            msgspec.json.encode(text).decode(errors="replace")[1:-1],
            repr(text)[1:-1],
        }
    forms = {
        form for form in forms if len(form.strip()) >= _SHORTEST and form.lower() not in _PLAIN
    }
    global _pattern  # noqa: PLW0603 compiled when a secret is added, used by every line
    with _lock:
        if forms <= _known:
            return
        _known.update(forms)
        longest_first = sorted(_known, key=len, reverse=True)
        _pattern = re.compile("|".join(map(_expression, longest_first)))


def hide_credentials(url: str) -> None:
    """Hide the password of a URL, and user and password together, if it has one."""
    found = credentials(url)
    if found:
        hide(found)
        hide(found.partition(":")[2])


def reveal() -> None:
    """Forget all secrets, since those of one config do not concern the next, as in tests."""
    global _pattern  # noqa: PLW0603 as above
    with _lock:
        _known.clear()
        _pattern = None


def _expression(form: str) -> str:
    found = re.escape(form)
    return rf"(?<!\w){found}(?!\w)" if len(form) < _SHORT else found


def masked(text: str) -> str:
    """Replace each secret in a text, and the credentials of each URL, by three stars."""
    if _pattern is not None:  # first: a password may hold what seems to end a URL
        text = _pattern.sub("***", text)
    return _CREDENTIALS.sub("***@", text) if "@" in text else text


def masked_values(value: Any) -> Any:
    """Mask every string in plain JSON values; numbers and keys are unchanged."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: masked_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked_values(item) for item in value]
    return value
