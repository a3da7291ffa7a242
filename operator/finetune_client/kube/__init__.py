"""Login and requests to the API server, with Python's own HTTP: what a command line starts with has to be loaded fast."""
