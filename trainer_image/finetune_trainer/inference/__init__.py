"""Answers of a finished run's model."""
