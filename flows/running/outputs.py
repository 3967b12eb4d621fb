"""The files of outputs: what they are called."""

__all__ = ["KINDS", "file_name"]

KINDS = ("predictions", "rejected", "alarms")
"""Of output."""


def file_name(kind: str, suffix: str) -> str:
    """Return the name of the file that a kind of output is written to."""
    return f"{kind}{suffix}.jsonl"
