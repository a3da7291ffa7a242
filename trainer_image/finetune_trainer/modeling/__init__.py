"""The model: loading, families, attention and the loss."""
