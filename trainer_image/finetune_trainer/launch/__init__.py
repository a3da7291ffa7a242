"""Start the workers of a run: in this process, or with Ray Train."""
