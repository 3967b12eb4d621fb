"""A run: the dataflow, its shards, and the processes that work on them."""
