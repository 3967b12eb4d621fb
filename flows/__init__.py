"""Flows: settings, the dataflow, the command line."""
