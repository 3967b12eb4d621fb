"""What operators do to a running model."""
