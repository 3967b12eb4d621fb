"""The bearer tokens of the gateway, and how much each may send."""

import hashlib
import hmac
import math
import re
import time
from collections.abc import Mapping

from midstream.engine.basics.masking import hide
from midstream.flows.config.tables import ConfigError

__all__ = ["Allowance", "Tokens"]

_SHORTEST = 16
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}\Z", re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+\Z", re.ASCII)  # RFC 6750, section 2.1
_BURST = 2.0  # seconds' worth


class Tokens:
    """The tokens of an environment variable: `NAME:TOKEN`, with commas or blanks between them.

    Parameters
    ----------
    variable
        The name of the variable.
    environment
        The environment. The tokens are masked in all that is logged from now on.

    Raises
    ------
    ConfigError
        If it has no tokens, or one that cannot be used; the message holds no token.
    """

    def __init__(self, variable: str, environment: Mapping[str, str]) -> None:
        given = environment.get(variable, "").replace(",", " ").split()
        if not given:
            raise ConfigError(
                f"the environment variable {variable} (gateway.tokens) is not set; needed: "
                "NAME:TOKEN, several with commas between them (openssl rand -hex 32 makes a token)"
            )
        self._digests: dict[str, bytes] = {}
        for number, pair in enumerate(given, 1):
            name, _, token = pair.partition(":")
            hide(token or pair)
            where = f"{variable}: token {number}"
            if not token or not _NAME.match(name):
                raise ConfigError(
                    f"{where}: allowed: NAME:TOKEN, with a name of letters, digits, '.', '_', '-'"
                )
            if len(token) < _SHORTEST or not _TOKEN.match(token):
                raise ConfigError(
                    f"{where} ({name}): needed: at least {_SHORTEST} characters, of letters, "
                    "digits and -._~+/="
                )
            if name in self._digests:
                raise ConfigError(f"{where}: the name {name} is there twice; allowed: each once")
            self._digests[name] = hashlib.sha256(token.encode()).digest()

    @property
    def names(self) -> list[str]:
        """The names of the tokens."""
        return list(self._digests)

    def owner(self, authorization: str | None) -> str | None:
        """Return whose token an `Authorization` header has; None if nobody's.

        It takes as long whichever token is given: digests of all tokens are compared in constant
        time.
        """
        scheme, _, token = (authorization or "").partition(" ")
        given = hashlib.sha256(token.strip().encode(errors="replace")).digest()
        found = None
        for name, kept in self._digests.items():
            if hmac.compare_digest(kept, given):
                found = name
        return found if scheme.lower() == "bearer" else None


class Allowance:
    """How many items one token may send: a bucket that fills at `rate` a second.

    Parameters
    ----------
    rate
        Items a second.
    most
        The most items of one request, which always fit into the full bucket.
    """

    def __init__(self, rate: float, most: int) -> None:
        self._rate = rate
        self._size = max(rate * _BURST, float(most))
        self._left = self._size
        self._at = time.monotonic()

    def take(self, number: int) -> int:
        """Take items; return 0, or the whole seconds to wait if there are not enough."""
        now = time.monotonic()
        self._left = min(self._size, self._left + (now - self._at) * self._rate)
        self._at = now
        if number <= self._left:
            self._left -= number
            return 0
        return max(1, math.ceil((number - self._left) / self._rate))
