"""Builders: pure functions from a frozen job to fresh manifests. No clock, no randomness, no I/O."""
