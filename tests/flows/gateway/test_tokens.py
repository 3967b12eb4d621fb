"""Tokens, and how much each may send."""

import pytest

from midstream.engine.basics.masking import masked
from midstream.flows.config.tables import ConfigError
from midstream.flows.gateway import tokens as module
from midstream.flows.gateway.tokens import Allowance, Tokens

LONG = "a-token-that-is-long-enough="


def test_a_token_tells_its_owner():
    """Only as a bearer token, whole; blanks or commas are between tokens."""
    tokens = Tokens("T", {"T": f"shop:{LONG}, bank:{LONG}2\ncrm:{LONG}3"})
    assert tokens.names == ["shop", "bank", "crm"]
    assert tokens.owner(f"Bearer {LONG}") == "shop"
    assert tokens.owner(f"bearer  {LONG}3 ") == "crm"
    for wrong in (None, "", LONG, "Bearer", "Bearer ", f"Basic {LONG}", f"Bearer {LONG[:-1]}",
                  f"Bearer {LONG}4", f"Bearer shop:{LONG}", "Bearer é"):  # fmt: skip
        assert tokens.owner(wrong) is None, wrong


def test_every_token_is_compared_whichever_is_given(monkeypatch):
    """The comparisons are of digests, in constant time, and do not end at the first that fits."""
    compared = []

    def compare(one, other):
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(module.hmac, "compare_digest", compare)
    tokens = Tokens("T", {"T": f"a:{LONG},b:{LONG}2"})
    for given in (f"Bearer {LONG}", "Bearer x", None):
        tokens.owner(given)
    assert compared == [(32, 32)] * 6


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("", "T (gateway.tokens) is not set"),
        (" , ", "T (gateway.tokens) is not set"),
        (LONG, "token 1: allowed: NAME:TOKEN"),
        (f":{LONG}", "token 1: allowed: NAME:TOKEN"),
        (f"shop:{LONG} ba!nk:{LONG}", "token 2: allowed: NAME:TOKEN"),
        ("shop:short", "token 1 (shop): needed: at least 16 characters"),
        ("shop:" + "é" * 20, "token 1 (shop): needed"),
        (f"shop:{LONG} shop:{LONG}2", "the name shop is there twice"),
    ],
)
def test_a_wrong_token_is_told_without_it(value, told):
    """The message names the variable and the token's number, not the token."""
    with pytest.raises(ConfigError) as error:
        Tokens("T", {"T": value})
    assert told in str(error.value)
    for secret in (LONG, "short", "é" * 20):
        assert secret not in masked(str(error.value)).replace("longer", "")


def test_tokens_are_masked_in_all_that_is_logged():
    """Whoever logs a token by mistake logs three stars."""
    Tokens("T", {"T": f"shop:{LONG}"})
    assert masked(f"x {LONG} y") == "x *** y"


def test_an_allowance_fills_over_time(monkeypatch):
    """A burst of two seconds' worth, then so many a second; it says how long to wait."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    allowance = Allowance(10.0, 5)
    assert [allowance.take(10), allowance.take(10), allowance.take(1)] == [0, 0, 1]
    now[0] += 0.5
    assert [allowance.take(5), allowance.take(15)] == [0, 2]
    now[0] += 1_000
    assert [allowance.take(20), allowance.take(1)] == [0, 1]


def test_one_request_of_the_largest_size_is_always_possible():
    """Else a small rate would refuse a full request for ever."""
    allowance = Allowance(0.5, 1_000)
    assert allowance.take(1_000) == 0
    assert allowance.take(1) == 2
