"""The trainer: predict, score, learn; replay; what a learner raises on."""
