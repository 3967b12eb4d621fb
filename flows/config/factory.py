"""Makes the model of a config: imports its factory, calls it, and checks that it can learn."""

import importlib
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from midstream.engine.learners.catalogue import is_named, make_named
from midstream.flows.config.settings import Settings
from midstream.flows.config.tables import ConfigError, nearest

__all__ = ["AfterRestart", "import_module", "make_model", "model_modules"]

_entered: list[str] = []  # the config's folder that we put first on sys.path


def model_modules(settings: Settings) -> tuple[str, ...]:
    """Return the modules besides River's whose classes a snapshot of the model may hold."""
    if is_named(settings.model.learner):
        return ()
    return (settings.model.learner.partition(":")[0],)


def make_model(settings: Settings) -> object:
    """Return the built-in learner of `model.learner`, or the result of its factory.

    A module beside the config precedes any other, and is imported under its own name, so that saved
    objects of its classes can be loaded. A process serves one config at a time: modules beside
    another config are dropped.

    Raises
    ------
    ConfigError
        If the factory does not exist or raises, or its result cannot learn the task.
    """
    learner = settings.model.learner
    if is_named(learner):
        try:
            return make_named(learner, settings.model.task, settings.model.options)
        except ValueError as e:
            raise ConfigError(f"{settings.file}: model.options: {e}") from e
    name, error = learner.partition(":")[2], _errors(settings)
    module = import_module(settings)
    assert module is not None
    factory = getattr(module, name, None)
    if factory is None:
        near = nearest(name, [n for n in vars(module) if not n.startswith("_")])
        raise error(f"{_place(module)} has no {name!r}{near}")
    if not callable(factory):
        what = f"{name!r} in {_place(module)} is of type {type(factory).__name__}"
        raise error(f"{what}; needed: a function without arguments that returns a model")
    try:
        model = factory()
    except (Exception, SystemExit) as e:  # whatever a user's function raises
        raise error(f"{name}() raised {_said(e, settings.root)}") from e
    if model is None:
        raise error(
            f"{name}() returned None; needed: a River estimator or a Learner (no return in it?)"
        )
    from midstream.engine.learners.learner import as_learner  # River: slow to import

    try:
        as_learner(model, settings.model.task, model_modules(settings))
    except (TypeError, ValueError) as e:
        raise error(f"{name}() returned what cannot learn: {_line(e)}") from e
    return model


def import_module(settings: Settings) -> ModuleType | None:
    """Import the module of `model.learner`, as `make_model` does; None for a built-in learner.

    Raises
    ------
    ConfigError
        If the module does not exist, or raises.
    """
    if is_named(settings.model.learner):
        return None
    name = settings.model.learner.partition(":")[0]
    return _import(name, settings.root, _errors(settings))


class AfterRestart:
    """The modules beside a config, imported anew as in the next process.

    They lack what a learner keeps in a module or on a class. If they cannot be imported twice, the
    loaded ones are used.
    """

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.root
        before = self._taken_out()
        try:
            make_model(settings)
            self._anew = self._taken_out()
        except ConfigError:
            self._taken_out()
            self._anew = before
        sys.modules.update(before)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Replace the loaded modules with these."""
        before = self._taken_out()
        sys.modules.update(self._anew)
        try:
            yield
        finally:
            self._anew |= self._taken_out()
            sys.modules.update(before)

    def _taken_out(self) -> dict[str, ModuleType]:
        ours = _modules_in(self._folder)
        return {name: sys.modules.pop(name) for name in ours}


def _errors(settings: Settings) -> Callable[[str], ConfigError]:
    """Return a function that makes errors about `model.learner`."""
    module, _, name = settings.model.learner.partition(":")

    def error(text: str) -> ConfigError:
        if "model.learner" in settings.hidden:
            text = text.replace(module, "***").replace(name, "***")
        return ConfigError(f"{settings.file}: model.learner: {text}")

    return error


def _import(name: str, folder: Path, error: Callable[[str], ConfigError]) -> ModuleType:
    """Import a module; one in `folder` precedes any other."""
    _enter(folder)
    path = folder.joinpath(*name.split("."))
    beside = [p for p in (path.with_name(f"{path.name}.py"), path / "__init__.py") if p.is_file()]
    top = name.partition(".")[0]
    loaded = sys.modules.get(top)
    if beside and loaded is not None and not _is_in(loaded, folder):
        raise error(f"{beside[0]} has the name of {_place(loaded)}, which is in use; rename it")
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name is None or not f"{name}.".startswith(f"{e.name}."):
            raise error(f"{name} raised on import: {_said(e, folder)}") from e
        near = nearest(top, [p.stem for p in folder.glob("*.py")])
        raise error(f"no module {name!r}{near} (looked for {path}.py, then on sys.path)") from None
    except (Exception, SystemExit) as e:  # whatever a user's module raises
        raise error(f"{name} raised on import: {_said(e, folder)}") from e


def _enter(folder: Path) -> None:
    """Put a config's folder first on sys.path, and remove that of another config."""
    if _entered == [str(folder)] and sys.path[:1] == _entered:
        return
    for old in _entered:
        if old in sys.path:
            sys.path.remove(old)
        if old != str(folder):
            for name in _modules_in(Path(old)):
                del sys.modules[name]
    _entered[:] = [str(folder)]
    sys.path.insert(0, str(folder))


def _modules_in(folder: Path) -> list[str]:
    """Return the names of the modules directly in a folder, and of their submodules."""
    ours = {n for n, m in list(sys.modules.items()) if "." not in n and _is_in(m, folder)}
    return [n for n in sys.modules if n.partition(".")[0] in ours]


def _is_in(module: ModuleType, folder: Path) -> bool:
    """Whether a module is a file or a package directly in a folder."""
    spec = getattr(module, "__spec__", None)
    if spec is None or spec.name == "__main__":
        return False
    if spec.submodule_search_locations:
        return any(Path(place).parent == folder for place in spec.submodule_search_locations)
    return spec.origin is not None and Path(spec.origin).parent == folder


def _place(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or f"the built-in module {module.__name__}"


def _said(e: BaseException, folder: Path) -> str:
    """Return in one line what was raised, and where in the user's own files."""
    if isinstance(e, SyntaxError) and e.filename is not None:
        return f"{type(e).__name__}: {e.msg} ({_at(e.filename, e.lineno, folder)})"
    frames = traceback.extract_tb(e.__traceback__)
    own = [
        f for f in frames
        if Path(f.filename).is_relative_to(folder) and "site-packages" not in f.filename
    ]  # fmt: skip
    where = (own or frames)[-1]
    return f"{type(e).__name__}: {_line(e)} ({_at(where.filename, where.lineno, folder)})"


def _line(e: BaseException) -> str:
    return textwrap.shorten(str(e), 300, placeholder="...")


def _at(filename: str, line: int | None, folder: Path) -> str:
    path = Path(filename)
    return f"{path.relative_to(folder) if path.is_relative_to(folder) else path}, line {line}"
