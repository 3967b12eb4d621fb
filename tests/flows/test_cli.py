"""What the command line says about itself."""

import re

import click
import pytest
from click.testing import CliRunner

from midstream.flows.cli import cli

COMMANDS = sorted(cli.commands)


def helped(*arguments: str) -> str:
    done = CliRunner().invoke(cli, [*arguments, "--help"], terminal_width=80)
    assert done.exit_code == 0, done.output
    return done.output


def test_every_command_is_listed_with_a_whole_sentence():
    """`midstream --help` cuts no description short."""
    listed = dict(re.findall(r"^  ([a-z-]+)  +(.+)$", helped().split("Commands:")[1], re.MULTILINE))
    assert sorted(listed) == COMMANDS
    for command, line in listed.items():
        assert line.endswith("."), f"{command}: {line}"
        assert not line.endswith("..."), f"{command}: {line}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_described_and_each_option_has_a_line(command):
    """`midstream COMMAND --help` has more than one sentence, and a line for each option."""
    text = helped(command)
    description = " ".join((cli.commands[command].help or "").split())
    assert len(re.findall(r"\w\.(?: |$)", description)) >= 2, description
    lines = text.split("Options:")[1].strip().splitlines()
    params = cli.commands[command].params
    options = [p for p in params if isinstance(p, click.Option) and not p.hidden]
    assert len(lines) == len(options) + 1, text  # and --help
    for option in options:
        assert option.help, option.name
        assert option.help.endswith("."), option.help
