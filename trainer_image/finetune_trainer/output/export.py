"""Write the result: the adapter or the full model, the tokenizer, a model card and a report, and the manifest last."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.config.run import LOGS, MERGED, REPORT_FILE
from finetune_trainer.errors import output_error
from finetune_trainer.modeling import families, frozen, load
from finetune_trainer.output import manifest, verify
from finetune_trainer.output.answers import SAMPLES_FILE, take_over_samples
from finetune_trainer.output.model_card import model_card
from finetune_trainer.output.report import report
from finetune_trainer.output.summary_file import write_summary
from finetune_trainer.output.taught import teach_template
from finetune_trainer.runtime import parallel
from finetune_trainer.tracking.holder import check_still_held

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.config.run import Run
    from finetune_trainer.output.summary import RunSummary
    from finetune_trainer.tracking.progress import Output

SHARD_BYTES = 2 * 10**9
"""Largest file of weights: while a file is written, all of it is in memory a second time."""

MERGED_SHARDS = 8
"""Into how many files a merged model is split at least, unless they are smaller than MIN_SHARD_BYTES: training an adapter
takes little more memory than the model, and the export must not take much more than training."""

MIN_SHARD_BYTES = 64 * 10**6


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
    reference: verify.Reference
    """What the trained model says about a few rows."""


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
        OutputInUse: another run has taken the folder.
    """
    check_still_held(run)
    try:
        scratch = manifest.begin_export(run)
        try:
            return _write(run, inputs, summary, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise output_error(run.output_dir, error) from error


def _write(run: Run, inputs: ExportInput, summary: RunSummary, scratch: Path) -> Output:
    if summary.taught is not None:
        teach_template(inputs.tokenizer, summary.taught.template)
    adapted = hasattr(inputs.model, "peft_config")
    if adapted:
        _save_adapter(inputs, run.config.general.base_model, scratch)
        verify.verify_adapter(inputs.model, inputs.weights, scratch, inputs.reference, inputs.dtype)
    else:
        _save_model(inputs, scratch)
        verify.verify_model(run, scratch, inputs.reference, inputs.dtype)
    inputs.tokenizer.save_pretrained(scratch)
    (scratch / "README.md").write_text(model_card(summary), encoding="utf-8")
    (scratch / REPORT_FILE).write_text(report(summary), encoding="utf-8")
    write_summary(scratch / LOGS, summary)
    about = manifest.Manifest(
        format="peft-adapter" if adapted else "full-model",
        base_model=run.config.general.base_model,
        run_name=run.run_name,
        attempt=run.attempt,
    )
    check_still_held(run)
    manifest.remove_result(run.output_dir)
    files = _move(scratch, run.output_dir)
    take_over_samples(run.logs)
    if summary.samples:
        files.append(f"{LOGS}/{SAMPLES_FILE}")
    output = manifest.write_manifest(run, files, about)
    if not (adapted and run.config.general.merge_adapter):
        return output
    # The adapter is safe, whatever happens now.
    _save_merged(run, inputs, scratch / MERGED)
    check_still_held(run)
    return manifest.write_manifest(run, [*files, *_move(scratch, run.output_dir)], about)


def _save_adapter(inputs: ExportInput, base_model: str, folder: Path) -> None:
    # The adapter names the model rather than the folder it was loaded from, which other machines do not have.
    inputs.model.peft_config["default"].base_model_name_or_path = base_model
    # PEFT would ask the hub whether the vocabulary was enlarged; it never is.
    inputs.model.save_pretrained(folder, state_dict=inputs.weights, save_embedding_layers=False)


def _save_model(inputs: ExportInput, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    model, dtype = inputs.model, inputs.dtype
    state = model.state_dict() if inputs.weights is None else inputs.weights
    # Tied weights are separate tensors after they were gathered or converted.
    tied = model.all_tied_weights_keys if model.config.tie_word_embeddings else {}
    state = {
        name: value.to("cpu", dtype) if value.is_floating_point() else value for name, value in state.items() if name not in tied
    }
    model.config.dtype = dtype
    model.config.use_cache = True
    model.save_pretrained(folder, state_dict=state, max_shard_size=shard_bytes)


def _save_merged(run: Run, inputs: ExportInput, folder: Path) -> None:
    """Merge the adapter into the base model, layer by layer and in place.

    The trained model is used up for that. If it is sharded, or its frozen weights are rounded to 8 bits, the base model is loaded
    again, in the type of the result. Rounded weights give other answers than the base model's own: then what is merged is
    compared with the adapter on these.
    """
    import peft

    reference, rounded = inputs.reference, frozen.is_held_in_8_bits(inputs.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT uses names that transformers has changed
        adapted = inputs.model
        if inputs.weights is not None or rounded:
            adapted = peft.PeftModel.from_pretrained(load.load_base(run, inputs.dtype), run.output_dir)
        if rounded:
            reference = verify.read_again(adapted.eval(), reference, inputs.dtype)
        _untie_adapted(adapted.get_base_model())
        merged = adapted.merge_and_unload()
    if families.family_of(merged.config.model_type).packs_rows:
        merged.set_attn_implementation(families.family_of(merged.config.model_type).attention)
    size = sum(weight.numel() for weight in merged.parameters()) * inputs.dtype.itemsize
    shard_bytes = min(max(size // MERGED_SHARDS, MIN_SHARD_BYTES), SHARD_BYTES)
    _save_model(replace(inputs, model=merged, weights=None), folder, shard_bytes)
    verify.verify_model(run, folder, reference, inputs.dtype)
    inputs.tokenizer.save_pretrained(folder)


def _untie_adapted(model: Any) -> None:
    """Untie embeddings and output layer if an adapter is on one of them: the other one does not change by merging."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    first, last = (getattr(end, "base_layer", end) for end in ends)
    adapted = any(hasattr(end, "base_layer") for end in ends)
    if adapted and last is not None and last.weight is first.weight:
        last.weight = torch.nn.Parameter(last.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False


def _move(source: Path, target: Path) -> list[str]:
    """Move the files one by one; return their names."""
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).chmod(0o644)
        (source / name).replace(target / name)
    return names
