"""Durable files, clocks, names, rights, and secrets kept out of messages."""
