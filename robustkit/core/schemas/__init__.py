"""JSON schemas of every document that robustkit writes for others to read."""
