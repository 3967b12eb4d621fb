"""The file names of outputs."""

__all__ = ["KINDS", "file_name"]

KINDS = ("predictions", "rejected", "alarms", "review")
"""Kinds of output."""


def file_name(kind: str, suffix: str) -> str:
    """Return the name of the file for a kind of output."""
    return f"{kind}{suffix}.jsonl"
