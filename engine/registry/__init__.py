"""The registry of versions, and their artifacts."""
