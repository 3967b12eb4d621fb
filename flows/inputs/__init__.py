"""The inputs that a config names."""
