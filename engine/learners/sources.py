"""Digest of the source code that a class or function depends on.

A definition must change where a run would learn otherwise. The code of a class alone does not say
that: its methods call functions and read constants of their module and of others. The digest
therefore covers every definition that can be reached by name, as written: the class with its
bases, decorators, defaults and properties, the functions that it calls, and the expressions that
constants are assigned from. Values do not count, since they may differ from run to run. Neither do
comments, docstrings, annotations of arguments, nor the version of Python.
"""

import ast
import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

__all__ = ["source_digest"]

_OTHERS = ("river", "midstream", "numpy")  # predictions show whether their code matters
_PACKAGES = ("site-packages", "dist-packages")
_LEFT_OUT = ("ctx", "kind", "type_comment", "returns", "annotation")
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class _Source(NamedTuple):
    """A module as written.

    Attributes
    ----------
    stamp
        Time of change and size of the file.
    bound
        By name, the statements at the top level that bind it.
    stars
        Statements `from … import *`.
    codes
        The code of all functions and classes, as this Python compiles it.
    """

    stamp: tuple[int, int]
    bound: dict[str, list[ast.stmt]]
    stars: list[ast.ImportFrom]
    codes: frozenset[CodeType]


_READ: "WeakKeyDictionary[ModuleType, _Source]" = WeakKeyDictionary()


def source_digest(value: Any) -> str | None:
    """Return the digest of the source of a class or function of the user's; None if unknown.

    It is unknown where there is no file, or where the file was changed after it was imported.
    """
    roots = value.__mro__ if isinstance(value, type) else (value,)
    texts: dict[tuple[str, str], str] = {}
    for root in roots:
        if not _is_own(root.__module__, root.__module__):
            continue
        source = _source(root.__module__)
        name = root.__qualname__.partition(".")[0]
        if source is None or name not in source.bound:
            return None
        if not (_is_as_written(root, source) and _reach(root.__module__, name, texts)):
            return None
    lines = (f"{module}.{name} {text}" for (module, name), text in sorted(texts.items()))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12] if texts else None


def _is_own(name: str, beside: str) -> bool:
    """Whether a module is the user's: in no installed package, except that of `beside`."""
    top = name.partition(".")[0]
    if top in _OTHERS or top in sys.stdlib_module_names:
        return False
    if top == beside.partition(".")[0]:
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is not None and not set(_PACKAGES) & set(Path(file).parts)


def _source(name: str) -> _Source | None:
    """Return a module as written; None if it has no source file that can be read."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None or file is None or not file.endswith(".py"):
        return None
    try:
        status = Path(file).stat()
        stamp = status.st_mtime_ns, status.st_size
        if module not in _READ or _READ[module].stamp != stamp:
            _READ[module] = _parsed(Path(file).read_bytes(), file, stamp)
    except (OSError, SyntaxError, ValueError):  # gone, or changed since it was imported
        return None
    return _READ[module]


def _parsed(text: bytes, file: str, stamp: tuple[int, int]) -> _Source:
    tree = ast.parse(text, file)
    bound: dict[str, list[ast.stmt]] = defaultdict(list)
    stars = []
    for statement in _at_top(tree.body):
        if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
            stars.append(statement)
        for name, binding in _binds(statement):
            bound[name].append(binding)
    codes = frozenset(_codes(compile(text, file, "exec", dont_inherit=True)))
    return _Source(stamp, dict(bound), stars, codes)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _at_top(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run at import, also those in conditions, loops and `with`."""
    for statement in body:
        yield statement
        if isinstance(statement, _DEFINITIONS):
            continue
        for name in ("body", "orelse", "finalbody"):
            yield from _at_top(getattr(statement, name, ()))
        for handler in getattr(statement, "handlers", ()):
            yield from _at_top(handler.body)


def _binds(statement: ast.stmt) -> Iterator[tuple[str, ast.stmt]]:
    """Yield the names that a statement at the top level binds or changes, and the binding."""
    if isinstance(statement, _DEFINITIONS):
        yield statement.name, statement
        return
    if isinstance(statement, ast.Import | ast.ImportFrom):
        for alias in statement.names:  # each by itself: the others do not matter
            alone: ast.stmt = ast.Import([alias])
            if isinstance(statement, ast.ImportFrom):
                alone = ast.ImportFrom(statement.module, [alias], statement.level)
            yield alias.asname or alias.name.partition(".")[0], alone
        return
    parts: list[ast.AST] = [statement]
    if isinstance(statement, ast.If | ast.While | ast.Try):
        parts = []  # the statements within are looked at one by one
    elif isinstance(statement, ast.For | ast.AsyncFor):
        parts = [statement.target]
    elif isinstance(statement, ast.With | ast.AsyncWith):
        parts = [*statement.items]
    elif isinstance(statement, ast.Expr):
        parts = []
        if isinstance(statement.value, ast.Call) and (name := _root(statement.value.func)):
            yield name, statement  # NAME.update(…)
    for node in (each for part in parts for each in ast.walk(part)):
        if isinstance(node, ast.Name | ast.Subscript | ast.Attribute):
            name = _root(node)  # also NAME[…] = …
            if isinstance(node.ctx, ast.Store) and name:
                yield name, statement


def _root(node: ast.AST) -> str | None:
    """Return the name that a chain of attributes and subscripts begins with."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _is_as_written(value: Any, source: _Source) -> bool:
    """Whether the file still holds the code of a class or function that was imported from it."""
    return all(
        function.__code__ in source.codes
        for function in _functions(value)
        if function.__module__ == value.__module__
        and not function.__code__.co_filename.startswith("<")  # made by a decorator
    )


def _functions(value: Any) -> Iterator[FunctionType]:
    """Yield a function, or the functions in a class, also those in properties."""
    if isinstance(value, FunctionType):
        yield value
    elif isinstance(value, type):
        for held in vars(value).values():
            for name in ("fget", "fset", "fdel", "func", "__func__"):
                yield from _functions(getattr(held, name, None))
            if isinstance(held, FunctionType):
                yield held


def _reach(module: str, name: str, texts: dict[tuple[str, str], str]) -> bool:
    """Add the text of a definition and of all that it refers to; return whether all is known."""
    waiting = [(module, name)]
    while waiting:
        place = waiting.pop()
        source = _source(place[0])
        if place in texts or source is None:
            continue
        if place[1] not in source.bound:
            origins = (_origin(place[0], star) for star in source.stars)
            waiting += [(origin, place[1]) for origin in origins if _is_own(origin, module)]
            continue
        value = vars(sys.modules[place[0]]).get(place[1])
        if getattr(value, "__module__", None) == place[0] and not _is_as_written(value, source):
            return False
        statements = source.bound[place[1]]
        texts[place] = "; ".join(map(_text, statements))
        for statement in statements:
            waiting += _referred(place[0], statement, module)
    return True


def _referred(module: str, statement: ast.stmt, beside: str) -> Iterator[tuple[str, str]]:
    """Yield the definitions that a statement refers to, as (module, name)."""
    if isinstance(statement, ast.ImportFrom):
        origin = _origin(module, statement)
        for alias in statement.names:
            if _is_own(origin, beside) and alias.name != "*":
                yield origin, alias.name
        return
    if isinstance(statement, ast.Import):
        return  # the attributes that are used are followed where they are used
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield module, node.id
        elif isinstance(node, ast.Attribute):
            yield from _of_module(module, node, beside)


def _of_module(module: str, node: ast.Attribute, beside: str) -> Iterator[tuple[str, str]]:
    """Yield what an attribute of a module refers to, such as `helpers.scale`."""
    value: Any = sys.modules.get(module)
    for name in [*_chain(node.value), node.attr]:
        if isinstance(value, ModuleType) and value.__name__ != module:
            if _is_own(value.__name__, beside):
                yield value.__name__, name
        elif value is not sys.modules.get(module):
            return
        value = vars(value).get(name) if isinstance(value, ModuleType) else None


def _chain(node: ast.AST) -> list[str]:
    """Return the names of `a.b.c`; empty if it begins with something else than a name."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else []


def _origin(module: str, statement: ast.ImportFrom) -> str:
    """Return the full name of the module that a statement imports from."""
    if not statement.level:
        return statement.module or ""
    package = getattr(sys.modules.get(module), "__package__", "") or ""
    parts = package.split(".")[: len(package.split(".")) - statement.level + 1]
    return ".".join([*parts, *filter(None, [statement.module])])


def _text(node: Any) -> str:
    """Return a syntax tree as text that is the same under each version of Python."""
    if isinstance(node, list):
        return f"[{', '.join(map(_text, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name in _LEFT_OUT and not isinstance(node, ast.AnnAssign):
            continue
        is_body = name == "body" and isinstance(node, _DEFINITIONS)
        held = _without_docstring(value) if is_body else value
        if held is None or held == []:
            continue
        fields.append(f"{name}={_text(held)}")
    return f"{type(node).__name__}({', '.join(fields)})"


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0]
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    if is_text and isinstance(first.value.value, str):  # type: ignore[attr-defined]
        return body[1:]
    return body
