"""Learners: River's, those of ours that are compiled, and what is known of each."""
