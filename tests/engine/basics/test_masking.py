import json
import logging
from urllib.parse import quote

import pytest

from midstream.engine.basics import masking
from midstream.engine.basics.masking import credentials, hide, hide_credentials, hide_value, masked

PASSWORD = "p@ss w/\"rd'ü"  # noqa: S105 a mark


@pytest.mark.parametrize(
    "form",
    [PASSWORD, quote(PASSWORD), quote(PASSWORD, safe=""), json.dumps(PASSWORD), repr(PASSWORD)],
)
def test_a_secret_is_hidden_in_every_form(form):
    """As it is, percent-encoded, and escaped as in JSON and in Python."""
    hide(PASSWORD)
    assert masked(f"cannot log in with {form}, sorry").count("***") == 1
    assert "rd" not in masked(form)


def test_a_secret_of_several_lines_is_hidden_on_one():
    """Errors are told on one line, also where a secret is a key file's text."""
    hide("-----BEGIN KEY-----\nabcdef\n-----END KEY-----\n")
    assert masked("bad key: -----BEGIN KEY----- abcdef -----END KEY-----") == "bad key: ***"


@pytest.mark.parametrize(
    ("url", "found", "shown"),
    [
        ("postgresql://u:pw@host/db", "u:pw", "postgresql://***@host/db"),
        ("postgresql://u:p@w@host/db", "u:p@w", "postgresql://***@host/db"),
        ("s3://id:a/b+c@bucket/x", "id:a/b+c", "s3://***@bucket/x"),
        ("postgresql://user@host/db", "", "postgresql://user@host/db"),
        ("http://host:80/a", "", "http://host:80/a"),
        ("/data/a@b", "", "/data/a@b"),
    ],
)
def test_credentials_of_a_url(url, found, shown):
    """They end at the last @; a user alone is no secret."""
    assert credentials(url) == found
    assert masked(f"no answer from {url} yet") == f"no answer from {shown} yet"


@pytest.mark.parametrize("password", ['it\'s "so" @ home', "a <b>@c d", "p@ss/w' ord"])
def test_a_password_holds_whatever_a_keyboard_has(password):
    """Quotes, blanks and angle brackets, which end a URL within other text."""
    url = f"postgresql://me:{password}@host/db"
    assert credentials(url) == f"me:{password}"
    hide_credentials(url)
    shown = "cannot reach postgresql://***@host/db with ***"
    assert masked(f"cannot reach {url} with {password}") == shown


def test_a_password_of_a_url_is_hidden_by_itself():
    """A client may say it apart from its URL, percent-encoded or not."""
    hide_credentials("sftp://u:p%40w@host/x")
    assert masked("user u, password p@w or p%40w") == "user u, password *** or ***"


def test_what_is_short_is_no_secret():
    """Three stars for every 'on' or 1 would make a line unreadable."""
    hide("on")
    hide_value("daily")
    assert masked("on, daily") == "on, daily"


def test_a_short_secret_is_hidden_as_a_word():
    """Within another word it is none."""
    hide("set")
    assert masked("a set, a setting") == "a ***, a setting"


def test_numbers_and_keys_stay():
    """JSON stays what it is: only texts are masked."""
    hide("123456")
    assert masking.masked_values({"123456": [123456, "is 123456"]}) == {
        "123456": [123456, "is ***"]
    }


def test_logs_are_masked(capsys):
    """In both forms."""
    from midstream.flows import logs

    hide("hunter2")
    try:
        for as_json in (False, True):
            logs.configure(as_json=as_json)
            logs.log.warning("login", reason="hunter2 is wrong", port=9092)
        plain, encoded = capsys.readouterr().err.splitlines()
    finally:
        logging.getLogger("midstream").handlers.clear()
    assert plain.endswith('event=login reason="*** is wrong" port=9092')
    assert json.loads(encoded)["reason"] == "*** is wrong"
