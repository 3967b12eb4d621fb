"""The registry that a config names."""

from pathlib import Path

from midstream.engine.registry import Registry
from midstream.flows.settings import Settings, load, model_modules

__all__ = ["open_registry"]


def open_registry(config: str | Path | Settings, *, create: bool = False) -> Registry:
    """Open the registry of a config: its versions, commands and deployments.

    Parameters
    ----------
    config
        A config file, or what was read from one.
    create
        Make it if it is not there.

    Raises
    ------
    ConfigError
        If the config cannot be read.
    RegistryError, StoreError
        If the registry or the store of its files is not there, or cannot be used.
    """
    settings = config if isinstance(config, Settings) else load(config)
    key = settings.versions.key
    return Registry(
        settings.registry,
        settings.artifacts,
        settings.name,
        key=None if key is None else key.encode(),
        modules=model_modules(settings),
        create=create,
    )
