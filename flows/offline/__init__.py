"""What is done without a run: check, evaluate, predict, send, init."""
