"""The training run: setup, loop, evaluation and sample answers."""
