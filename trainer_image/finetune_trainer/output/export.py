"""Write the result: the adapter or the full model, the tokenizer, a model card and a report, and the manifest last."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.config.run import LOGS, MERGED, REPORT_FILE
from finetune_trainer.errors import output_error
from finetune_trainer.modeling import load
from finetune_trainer.output import manifest
from finetune_trainer.output.answers import SAMPLES_FILE
from finetune_trainer.output.model_card import model_card
from finetune_trainer.output.report import report
from finetune_trainer.output.taught import teach_template
from finetune_trainer.runtime import parallel

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.config.run import Run
    from finetune_trainer.output.summary import RunSummary
    from finetune_trainer.tracking.progress import Output

SCRATCH = ".export"
"""Folder below the output folder in which the result is prepared: on the same volume, so that files can be renamed."""


@dataclass(frozen=True)
class ExportInput:
    """What is exported."""

    model: Any
    """The trained model, adapted or not."""
    weights: dict[str, Any] | None
    """The return value of `gather_weights`."""
    tokenizer: Any
    """The tokenizer, as it was loaded."""
    dtype: torch.dtype
    """Type in which a full model is saved."""


def gather_weights(model: Any) -> dict[str, Any] | None:
    """Collect sharded weights in host memory on rank 0; None: they are not sharded. A collective.

    Of an adapted model only the trainable weights are collected.
    """
    if not parallel.is_sharded(model):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    adapted = hasattr(model, "peft_config")
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapted)
    return get_model_state_dict(model, options=options)


def export(run: Run, inputs: ExportInput, summary: RunSummary) -> Output:
    """Write all files of the result into the output folder, and declare it complete.

    Args:
        run: the output folder, and the names for the result.
        inputs: what to write.
        summary: for the report and the model card.

    Raises:
        OutputVolumeFull: no space left.
        OutputNotWritable: the folder is not writable.
    """
    try:
        return _write(run, inputs, summary)
    except OSError as error:
        raise output_error(run.output_dir, error) from error


def _write(run: Run, inputs: ExportInput, summary: RunSummary) -> Output:
    scratch = run.output_dir / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    if summary.taught is not None:
        teach_template(inputs.tokenizer, summary.taught.template)
    base_model = run.config.general.base_model
    adapted = hasattr(inputs.model, "peft_config")
    if adapted:
        _save_adapter(inputs, base_model, scratch)
        if run.config.general.merge_adapter:
            _save_merged(run, inputs, scratch)
    else:
        _save_model(inputs, scratch)
    inputs.tokenizer.save_pretrained(scratch)
    (scratch / "README.md").write_text(model_card(summary), encoding="utf-8")
    (scratch / REPORT_FILE).write_text(report(summary), encoding="utf-8")
    files = _move(scratch, run.output_dir)
    if summary.samples:
        files.append(f"{LOGS}/{SAMPLES_FILE}")
    about = manifest.Manifest(
        format="peft-adapter" if adapted else "full-model",
        base_model=base_model,
        run_name=run.run_name,
        attempt=run.attempt,
    )
    return manifest.write_manifest(run.output_dir, files, about)


def _save_adapter(inputs: ExportInput, base_model: str, folder: Path) -> None:
    # The adapter names the model rather than the folder it was loaded from, which other machines do not have.
    inputs.model.peft_config["default"].base_model_name_or_path = base_model
    # PEFT would ask the hub whether the vocabulary was enlarged; it never is.
    inputs.model.save_pretrained(folder, state_dict=inputs.weights, save_embedding_layers=False)


def _save_model(inputs: ExportInput, folder: Path) -> None:
    model, dtype = inputs.model, inputs.dtype
    state = model.state_dict() if inputs.weights is None else inputs.weights
    # Tied weights are separate tensors after they were gathered or converted.
    tied = model.all_tied_weights_keys if model.config.tie_word_embeddings else {}
    state = {
        name: value.to("cpu", dtype) if value.is_floating_point() else value for name, value in state.items() if name not in tied
    }
    model.config.dtype = dtype
    model.config.use_cache = True
    model.save_pretrained(folder, state_dict=state)


def _save_merged(run: Run, inputs: ExportInput, scratch: Path) -> None:
    """Merge the saved adapter into the base model, which is loaded again: the trained one may be sharded."""
    import peft

    base = load.load_base(run, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT uses names that transformers has changed
        adapted = peft.PeftModel.from_pretrained(base, scratch)
        _untie_adapted_head(base)
        merged = adapted.merge_and_unload()
    folder = scratch / MERGED
    _save_model(ExportInput(merged, None, inputs.tokenizer, inputs.dtype), folder)
    inputs.tokenizer.save_pretrained(folder)


def _untie_adapted_head(model: Any) -> None:
    """Untie an adapted output layer from the embeddings, so that merging does not change them."""
    plain = getattr(model.get_output_embeddings(), "base_layer", None)
    if plain is not None and plain.weight is model.get_input_embeddings().weight:
        plain.weight = torch.nn.Parameter(plain.weight.detach().clone())
        model.config.tie_word_embeddings = False


def _move(source: Path, target: Path) -> list[str]:
    """Move the files one by one; return their names."""
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).chmod(0o644)
        (source / name).replace(target / name)
    shutil.rmtree(source)
    return names
