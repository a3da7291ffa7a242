"""The `finetune` command line and `kubectl finetune` plugin."""
