"""Runs in a pod that mounts the output claim: checks every file of the manifest and loads the adapter with PEFT.

Arguments: folder of the result, folder of the base model. Prints one JSON line.
"""

import hashlib
import json
import sys
from pathlib import Path

folder, base = map(Path, sys.argv[1:3])
manifest_bytes = (folder / "manifest.json").read_bytes()
manifest = json.loads(manifest_bytes)
for file in manifest["files"]:
    data = (folder / file["path"]).read_bytes()
    if (len(data), hashlib.sha256(data).hexdigest()) != (file["sizeBytes"], file["sha256"]):
        sys.exit(f"{file['path']} is not what the manifest says")

import torch  # noqa: E402 - after the cheap checks
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
inputs = tokenizer("The capital of France is", return_tensors="pt")
with torch.no_grad():
    before = model(**inputs).logits
    after = PeftModel.from_pretrained(model, folder)(**inputs).logits
print(
    json.dumps(
        {
            "files": sorted(file["path"] for file in manifest["files"]),
            "sizeBytes": sum(file["sizeBytes"] for file in manifest["files"]),
            "manifestSHA256": hashlib.sha256(manifest_bytes).hexdigest(),
            "changed": float((after - before).abs().max()),
        }
    )
)
