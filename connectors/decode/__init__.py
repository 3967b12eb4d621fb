"""Decoders: blocks of bytes to batches of events."""
