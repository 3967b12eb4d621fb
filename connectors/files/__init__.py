"""Files as an input."""
