"""Commands that need no run: check, evaluate, predict, send, init."""
