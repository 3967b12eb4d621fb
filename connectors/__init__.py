"""Connectors: bytes to batches and back, files and topics."""
