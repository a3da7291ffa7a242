"""The FinetuneJob operator."""
