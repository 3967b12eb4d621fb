"""Eight bytes at once, wherever they begin: for compiled kernels, which do not check bounds."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["eight", "put_eight"]

_TEXT = types.Array(types.uint8, 1, "C", readonly=True)
_OUT = types.Array(types.uint8, 1, "C")


def _word(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    """Return the address of the eight bytes from `at` on."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), ir.PointerType(ir.IntType(64)))


@intrinsic  # type: ignore[untyped-decorator]  # numba publishes no types
def eight(typing: Any, text: Any, at: Any) -> Any:  # noqa: ARG001
    """Return the eight bytes of `text` from `at` on as one number, the first lowest."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_word(context, builder, signature.args[0], *arguments), align=1)

    return types.uint64(_TEXT, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]  # numba publishes no types
def put_eight(typing: Any, out: Any, at: Any, word: Any) -> Any:  # noqa: ARG001
    """Put a number, as `eight` gives it, to `out` from `at` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place, value = arguments
        address = _word(context, builder, signature.args[0], array, place)
        builder.store(value, address, align=1)
        return context.get_dummy_value()

    return types.void(_OUT, types.int64, types.uint64), generate
