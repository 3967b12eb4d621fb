"""The identity, locks and registry of a run."""
