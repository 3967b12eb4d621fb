"""Opens the registry of a config."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from midstream.engine.registry.artifacts import ArtifactError
from midstream.engine.registry.database import Database, NoRegistryError
from midstream.engine.registry.registry import Registry
from midstream.flows.claims.identity import identity_of
from midstream.flows.config.factory import import_module, model_modules
from midstream.flows.config.settings import Settings
from midstream.flows.config.tables import ConfigError
from midstream.flows.loading import load
from midstream.flows.logs import log

if TYPE_CHECKING:
    from midstream.engine.training.trainer import Trainer

__all__ = ["has_registry", "open_registry", "take_over"]


class _ConfiguredRegistry(Registry):
    """A registry that finds the classes of models beside its config."""

    def __init__(self, settings: Settings, *, create: bool) -> None:
        self._settings = settings
        key = settings.versions.key
        super().__init__(
            settings.registry,
            settings.artifacts,
            settings.name,
            key=None if key is None else key.encode(),
            modules=model_modules(settings),
            create=create,
            identity=identity_of(settings),
        )

    def load(self, version: int, shard: str | None = None) -> "Trainer":
        missing = None
        try:
            import_module(self._settings)
        except ConfigError as error:  # a model with only River's classes needs none
            missing = error
        try:
            return super().load(version, shard)
        except ArtifactError as error:
            if missing is None:
                raise
            raise ArtifactError(f"{error}; {missing}") from None


def open_registry(config: str | Path | Settings, *, create: bool = False) -> Registry:
    """Open the registry of a config: its versions, commands and deployments.

    To load models with classes of the user's own, it imports the module beside the config.

    Parameters
    ----------
    config
        A config file, or the settings read from one.
    create
        Create the registry if it does not exist.

    Raises
    ------
    ConfigError
        If the config cannot be read.
    IdentityError
        If the identity of the state cannot be determined.
    OtherStateError
        If the model there belongs to another state.
    RegistryError, StoreError
        If the registry or the store of its files is missing or cannot be used.
    """
    settings = config if isinstance(config, Settings) else load(config)
    return _ConfiguredRegistry(settings, create=create)


def take_over(settings: Settings, last_command: int, by: str) -> None:
    """Make the registry's model that of this config's state, if it belongs to another.

    Raises
    ------
    RegistryError, StoreError
        If the registry cannot be used.
    """
    identity = identity_of(settings)
    assert identity, "it was not settled"
    registry = Registry(settings.registry, settings.artifacts, settings.name, create=True)
    with closing(registry):
        registry.artifacts.claim(identity, takes=True)
        if owner := registry.take_over(identity, last_command, by):
            log.warning(
                "model_taken_over", model=settings.name, of=owner, by=identity,
                note="the state that it was is shut out; what was given for it is dropped",
            )  # fmt: skip


def has_registry(settings: Settings) -> bool:
    """Whether the registry of a config exists and has its model; creates nothing.

    Raises
    ------
    RegistryError
        If its database cannot be used.
    """
    try:
        Database(settings.registry, settings.name, identity=identity_of(settings)).close()
    except NoRegistryError:
        return False
    return True
