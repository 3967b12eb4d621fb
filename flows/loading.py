"""Loads a config: reads the file and checks it against its kind of input."""

from pathlib import Path

from midstream.flows.config.settings import Settings, read
from midstream.flows.inputs.catalogue import check_input

__all__ = ["load"]


def load(path: str | Path) -> Settings:
    """Read and check a config, as `midstream.flows.config.settings.read` does.

    Raises
    ------
    ConfigError
        If the file cannot be read, or contains what is not allowed.
    """
    return read(path, check_input)
