"""A config: its settings, and the model that it names."""
