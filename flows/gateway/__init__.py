"""The gateway: takes feedback over HTTP and from raw topics, for the feedback topic."""
