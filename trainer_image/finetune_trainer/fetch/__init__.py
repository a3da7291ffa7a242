"""Fetch rows and base models by their addresses into a claim, before anything waits for them."""
