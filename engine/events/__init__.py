"""Events in batches, predictions, and the rules for values."""
