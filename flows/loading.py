"""Loads a config: reads the file, and checks it with what its kind of input allows."""

from pathlib import Path

from midstream.flows.config.settings import Settings, read
from midstream.flows.inputs.catalogue import check_input

__all__ = ["load"]


def load(path: str | Path) -> Settings:
    """Read and check a config; `midstream.flows.config.settings.read` tells how.

    Raises
    ------
    ConfigError
        If the file cannot be read, or says what is not allowed.
    """
    return read(path, check_input)
