"""Keys of llm-on-ray that have no effect any more."""

from __future__ import annotations

OBSOLETE_KEYS: dict[str, str] = {
    "General.gpt_base_model": "it chose an old transformers release for GPT models; current releases load them",
    "General.gaudi_config_name": "Gaudi is not supported",
    "General.deltatuner_config": "deltatuner is discontinued; use lora_config",
    "General.checkpoint_dir": "checkpoints are kept below output_dir",
    "Dataset.max_seq_length": "no release of llm-on-ray read it; use max_length",
    "Training.hpu_execution_mode": "Gaudi is not supported",
    "Training.deepspeed_config_file": "DeepSpeed is not supported; use accelerate_mode FSDP",
}
"""Keys that are accepted and have no meaning any more → why. The user is warned about each."""


INACTIVE_KEYS: dict[str, str] = {
    "Dataset.padding": "the rows of a batch are padded to the longest, or packed without padding (Dataset.group)",
}
"""Keys that this release accepts without effect → what happens instead. The user is warned about each that is not at
its default."""
