"""From data files to batches: sources, rows, prompts, tokens and their cache, and batching."""
