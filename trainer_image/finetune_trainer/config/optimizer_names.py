"""Names of optimizers."""

from __future__ import annotations

OPTIMIZERS: dict[str, str] = {
    "adadelta": "Adadelta",
    "adafactor": "Adafactor",
    "adagrad": "Adagrad",
    "adam": "Adam",
    "adamax": "Adamax",
    "adamw": "AdamW",
    "adamw_anyprecision": "AdamW",
    "adamw_apex_fused": "AdamW",
    "adamw_hf": "AdamW",
    "adamw_torch": "AdamW",
    "adamw_torch_fused": "AdamW",
    "asgd": "ASGD",
    "nadam": "NAdam",
    "radam": "RAdam",
    "rmsprop": "RMSprop",
    "rprop": "Rprop",
    "sgd": "SGD",
}
"""Accepted optimizer names, in lower case → the class in ``torch.optim``. llm-on-ray took torch's class names until
mid-2024 and Hugging Face's OptimizerNames afterwards; users have YAML files of both kinds."""


RENAMED_OPTIMIZERS = ("adamw_hf", "adamw_apex_fused", "adamw_anyprecision")
"""Names that current releases do not implement any more: torch's AdamW is used instead, and the user is warned."""
