"""The engine: learners, metrics, drift, replay, journal and snapshots, in plain Python."""
