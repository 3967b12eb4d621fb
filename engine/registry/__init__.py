"""The registry of versions, and the artifacts that it names."""
