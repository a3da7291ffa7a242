"""The containerised trainer of the FinetuneJob operator, and the command `llm_on_ray-finetune`."""
