"""What the command line says about itself."""

import re

import click
import pytest
from click.testing import CliRunner

from midstream.flows.cli import cli

COMMANDS = sorted(cli.commands)
GROUPS = {name: c.commands for name, c in cli.commands.items() if isinstance(c, click.Group)}
EACH = [(name,) for name in COMMANDS] + [(g, name) for g, c in GROUPS.items() for name in c]


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


@pytest.mark.parametrize("names", EACH, ids=" ".join)
def test_every_command_is_described_and_each_option_has_a_line(names):
    """`midstream COMMAND --help` has more than one sentence, and a line for each option."""
    text = helped(*names)
    command = cli.commands[names[0]]
    for name in names[1:]:
        command = command.commands[name]
    description = " ".join((command.help or "").split())
    assert len(re.findall(r"\w\.(?: |$)", description)) >= 2, description
    lines = text.split("Options:")[1].split("Commands:")[0].strip().splitlines()
    params = command.params
    options = [p for p in params if isinstance(p, click.Option) and not p.hidden]
    assert len(lines) == len(options) + 1, text  # and --help
    for option in options:
        assert option.help, option.name
        assert option.help.endswith("."), option.help
