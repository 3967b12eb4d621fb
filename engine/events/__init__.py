"""Events in batches, predictions, and what a value may be."""
