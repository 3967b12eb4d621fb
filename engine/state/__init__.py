"""State as bytes: what it may name, how it is encoded, and snapshots of it."""
