"""Every family in its real shape on one GPU, with random weights: it runs, learns, stops with a checkpoint and goes on.

    python -m tests.benchmarks.gpu_shapes RESULTS.json [SHAPE…]

For each shape and way to train: the losses, tokens per second, peak memory, and for llama how far the losses of a run that
was stopped in the middle and went on are from those of an undisturbed one. It needs no Ray: the ranks meet by a file.
"""

from __future__ import annotations

import gc
import json
import platform
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support import ranks
from tests.support.trainer import make_tokenizer

LLAMA_1B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8, "max_position_embeddings": 8192, "vocab_size": 128256,
            "tie_word_embeddings": True}  # fmt: skip
LLAMA_8B = LLAMA_1B | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "tie_word_embeddings": False}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": LLAMA_1B,
    "gpt2-1b": {"n_embd": 1600, "n_layer": 32, "n_head": 25, "n_positions": 1024, "vocab_size": 50257},
    "gpt_neox-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 8,
                    "max_position_embeddings": 2048, "vocab_size": 50304},
    "gptj-1b": {"n_embd": 2048, "n_layer": 18, "n_head": 16, "rotary_dim": 64, "n_positions": 2048, "vocab_size": 50400},
    "bloom-1b": {"hidden_size": 1536, "n_layer": 24, "n_head": 16, "vocab_size": 250880},
    "opt-1b": {"hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24, "num_attention_heads": 32,
               "max_position_embeddings": 2048, "word_embed_proj_dim": 2048, "vocab_size": 50272},
    "mpt-1b": {"d_model": 2048, "n_layers": 24, "n_heads": 16, "max_seq_len": 2048, "vocab_size": 50368},
    "llama-8b": LLAMA_8B,
    "llama-small": LLAMA_1B | {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "vocab_size": 32000},
}  # fmt: skip
LORA = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1}
ROWS = 640


def ways(shape: str) -> list[dict[str, Any]]:
    """How a shape is trained: method and mode, and what else is in the configuration."""
    if shape == "llama-8b":
        # AdamW's moments alone would fill the GPU, and Adafactor does not work on shards.
        small = {"optimizer": "SGD", "learning_rate": 0.1, "gradient_checkpointing": True, "steps": 8}
        lora = [{"method": "lora", "mode": mode, "steps": 12} for mode in ("DDP", "FSDP")]
        return lora + [{"method": "full", "mode": mode, **small} for mode in ("FSDP", "DDP")]  # DDP: more than 80 GB.
    if shape == "llama-1b":
        return [{"method": method, "mode": mode} for mode in ("DDP", "FSDP") for method in ("lora", "full")]
    return [{"method": method, "mode": "DDP", "undisturbed": True} for method in ("lora", "full")]


def write_rows(path: Path) -> None:
    """Rows of lognormal length, up to about 500 tokens, of words without sense."""
    random.seed(0)
    words = ["What", "is", "plus", "Please", "tell", "numbers", "are", "given", "ANSWER", "Two"]

    def text(tokens: float) -> str:
        return " ".join(random.choices(words, k=max(2, int(tokens / 1.2))))

    with path.open("w") as file:
        for _ in range(ROWS):
            size = min(360.0, random.lognormvariate(4.5, 0.7))
            file.write(json.dumps({"instruction": text(0.4 * size), "response": text(0.6 * size)}) + "\n")


def make_model(shape: str, folder: Path) -> int:
    """Save a model with random weights in bfloat16, and the tokenizer; give the number of weights."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    config = CONFIG_MAPPING[shape.rpartition("-")[0]](**SHAPES[shape])
    config.eos_token_id = config.bos_token_id = config.pad_token_id = 0
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    count = sum(weight.numel() for weight in model.parameters())
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return count


def configure(model: Path, output: Path, way: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run."""
    steps = way.get("steps", 20)
    checkpointing = {"enable_gradient_checkpointing": way.get("gradient_checkpointing", False)}
    lora = LORA if way["method"] == "lora" else None
    return {
        "General": {"base_model": str(model), "output_dir": str(output), "lora_config": lora, **checkpointing},
        "Dataset": {"train_file": "rows.jsonl", "validation_split_percentage": 0},
        "Training": {
            "optimizer": way.get("optimizer", "AdamW"), "batch_size": 16, "max_train_steps": steps,
            "learning_rate": way.get("learning_rate", 1e-3 if lora else 1e-4), "mixed_precision": "bf16", "device": "GPU",
            "logging_steps": 1, "accelerate_mode": way["mode"], "resources_per_worker": {"CPU": 4, "GPU": 1},
        },
    }  # fmt: skip


def measure(model: Path, work: Path, way: dict[str, Any], size: int) -> dict[str, Any]:
    """Train undisturbed, and stopped in the middle; what came of it."""
    steps = way.get("steps", 20)
    whole, stopped = ({"config": configure(model, work / name, way), "data": str(work), "stop": None, "name": name}
                      for name in ("whole", "stopped"))  # fmt: skip
    again = [] if way.get("undisturbed") else [stopped | {"stop": steps // 2}, stopped]
    ranks.start(work / "ranks", [whole, *again], size)
    losses = read_losses(work / "whole")
    progress = json.loads((work / "whole" / "logs" / "progress.json").read_text())
    peaks = [json.loads(line)["peakBytes"] for line in (work / "ranks" / "rank-0.log").read_text().splitlines()
             if line.startswith('{"peakBytes"')]  # fmt: skip
    return {
        **way, "ranks": size, "losses": losses, "tokensPerSecond": progress["tokensPerSecond"],
        "peakGiB": round(peaks[0] / 2**30, 1),
        "resumedDiffersBy": farthest(losses, read_losses(work / "stopped")) if again else None,
    }  # fmt: skip


def farthest(some: list[float], others: list[float]) -> float:
    """How far the losses of two runs are apart at most."""
    return max(abs(a - b) for a, b in zip(some, others, strict=True))


def read_losses(output: Path) -> list[float]:
    """The losses of all steps."""
    lines = (output / "logs" / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def main(results: Path, shapes: list[str]) -> None:
    """Measure shape after shape; each is on record at once."""
    import torch
    import transformers

    size = torch.cuda.device_count()
    about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "transformers": transformers.__version__}
    found: dict[str, Any] = {**about, "python": platform.python_version(), "shapes": {}}
    for shape in shapes:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
            entry: dict[str, Any] = {"weights": make_model(shape, Path(memory)), "runs": []}
            found["shapes"][shape] = entry
            for way in ways(shape):
                work, began = Path(tempfile.mkdtemp(dir="/dev/shm")), time.monotonic()
                write_rows(work / "rows.jsonl")
                try:
                    entry["runs"].append(measure(Path(memory), work, way, size))
                except AssertionError as error:
                    entry["runs"].append({**way, "error": str(error)})
                print(shape, entry["runs"][-1], f"{time.monotonic() - began:.0f} s", flush=True)
                shutil.rmtree(work)
                results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(SHAPES))
