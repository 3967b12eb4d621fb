"""Learners: River's, the compiled ones, and what is known of each."""
