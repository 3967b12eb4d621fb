"""Reads and writes eight unaligned bytes at once, for compiled kernels, without bounds checks.

With NUMBA_BOUNDSCHECK=1 they check bounds, as indexing does.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["checked", "eight", "put_eight"]

_TEXT = types.Array(types.uint8, 1, "C", readonly=True)
_OUT = types.Array(types.uint8, 1, "C")


def checked(context: Any, builder: Any, kind: Any, arguments: Any, width: int) -> Any:
    """Return the address of `width` bytes; `arguments` are an array and an index.

    With bounds checks on, the code raises IndexError unless all of them are in the array.
    """
    array, at = arguments
    made = context.make_array(kind)(context, builder, array)
    if context.enable_boundscheck:
        size = builder.extract_value(made.shape, 0)
        for index in (at, builder.add(at, ir.Constant(at.type, width - 1))):
            cgutils.do_boundscheck(context, builder, index, size)
    return builder.gep(made.data, [at])


def _word(context: Any, builder: Any, kind: Any, arguments: Any) -> Any:
    """Return the address of eight bytes; `arguments` are an array and an index."""
    address = checked(context, builder, kind, arguments, 8)
    return builder.bitcast(address, ir.PointerType(ir.IntType(64)))


@intrinsic  # type: ignore[untyped-decorator]  # numba publishes no types
def eight(typing: Any, text: Any, at: Any) -> Any:  # noqa: ARG001
    """Return the eight bytes of `text` from `at` on as one number, the first byte lowest."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_word(context, builder, signature.args[0], arguments), align=1)

    return types.uint64(_TEXT, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]  # numba publishes no types
def put_eight(typing: Any, out: Any, at: Any, word: Any) -> Any:  # noqa: ARG001
    """Write a number, as returned by `eight`, to `out` from `at` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _word(context, builder, signature.args[0], arguments[:2])
        builder.store(arguments[2], address, align=1)
        return context.get_dummy_value()

    return types.void(_OUT, types.int64, types.uint64), generate
