"""State as bytes: the names it may hold, its encoding, and snapshots."""
