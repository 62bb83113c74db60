"""A public kit for testing pipelines: sources and sinks without a link, and a lossy gap to put in the middle."""
