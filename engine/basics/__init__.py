"""Durable files, clocks, names, permissions, and secrets kept out of messages."""
