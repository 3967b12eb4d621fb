"""Encoders: predictions, alarms and records to bytes."""
