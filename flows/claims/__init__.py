"""What belongs to a run: its identity, its locks, its registry."""
