"""Measurements of speed and quality; each is one command, and its results are kept as JSON."""
