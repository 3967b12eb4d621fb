"""Entry point of a process of the command line."""

from midstream.flows.process import start

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    start(_command_line)


def _command_line() -> None:
    from midstream.flows.cli import cli  # after signal handlers are set: this imports much

    cli()
