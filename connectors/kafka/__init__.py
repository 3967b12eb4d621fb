"""Kafka as an input, a journal and an output."""
