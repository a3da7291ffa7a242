"""The FinetuneJob API."""
