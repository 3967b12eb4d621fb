"""The join of feedback, which comes late, to the events that were predicted."""
