"""The command `llm_on_ray-finetune`: its options, what it checks, and how it ends."""
