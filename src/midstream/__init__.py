"""Midstream."""
