"""A shard: its journal, its commands, and what it publishes."""
