"""The known key that an unknown one most likely means."""

import math
from collections.abc import Iterable

from erniekit.config.aliases import ALIASES
from erniekit.config.keys import NO_EFFECT, declared_keys, upstream_keys

# Names of the same thing in other frameworks.
SYNONYMS = {
    "lr": "learning_rate",
    "base_lr": "learning_rate",
    "max_lr": "learning_rate",
    "peak_lr": "learning_rate",
    "cutoff_len": "max_seq_len",
    "max_length": "max_seq_len",
    "max_seq_length": "max_seq_len",
    "model_max_length": "max_seq_len",
    "seq_len": "max_seq_len",
    "sequence_length": "max_seq_len",
    "block_len": "max_seq_len",
    "num_epochs": "num_train_epochs",
    "epochs": "num_train_epochs",
    "epoch": "num_train_epochs",
    "num_steps": "max_steps",
    "total_steps": "max_steps",
    "train_steps": "max_steps",
    "num_train_steps": "max_steps",
    "model": "model_name_or_path",
    "model_path": "model_name_or_path",
    "model_name": "model_name_or_path",
    "base_model": "model_name_or_path",
    "pretrained_model_name_or_path": "model_name_or_path",
    "dataset": "train_dataset_path",
    "dataset_path": "train_dataset_path",
    "train_data": "train_dataset_path",
    "train_file": "train_dataset_path",
    "data_path": "train_dataset_path",
    "eval_dataset": "eval_dataset_path",
    "eval_data": "eval_dataset_path",
    "eval_file": "eval_dataset_path",
    "val_data": "eval_dataset_path",
    "valid_dataset_path": "eval_dataset_path",
    "validation_file": "eval_dataset_path",
    "template": "chat_template",
    "grad_accum": "gradient_accumulation_steps",
    "gradient_accumulation": "gradient_accumulation_steps",
    "accumulate_grad_batches": "gradient_accumulation_steps",
    "micro_batch_size": "per_device_train_batch_size",
    "batch": "batch_size",
    "bs": "batch_size",
    "per_device_batch_size": "per_device_train_batch_size",
    "gradient_checkpointing": "recompute",
    "activation_checkpointing": "recompute",
    "train_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "clip_grad": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "gradient_clipping": "max_grad_norm",
    "wd": "weight_decay",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "eps": "adam_epsilon",
    "scheduler": "lr_scheduler_type",
    "warmup": "warmup_steps",
    "optimizer": "optim",
    "dtype": "compute_type",
    "torch_dtype": "compute_type",
    "precision": "compute_type",
    "finetuning_type": "fine_tuning",
    "finetune_type": "fine_tuning",
    "hub": "download_hub",
    "random_seed": "seed",
    "out_dir": "output_dir",
    "save_dir": "output_dir",
    "output": "output_dir",
    "log_steps": "logging_steps",
    "log_every": "logging_steps",
    "save_every": "save_steps",
    "eval_every": "eval_steps",
    "resume": "resume_from_checkpoint",
    "early_stopping": "early_stopping_patience",
    "patience": "early_stopping_patience",
    "workers": "dataloader_num_workers",
    "num_workers": "dataloader_num_workers",
    "max_tokens": "max_new_tokens",
    "shuffle": "random_shuffle",
    "shard_size": "max_shard_size",
    "thinking": "enable_thinking",
}


def suggest(unknown: str) -> str | None:
    """The nearest known key, or None when nothing is near."""
    bare = unknown.strip().lower().replace("-", "_").replace(" ", "_")
    if bare in SYNONYMS:
        return SYNONYMS[bare]
    known = _known()
    for candidate in (bare, bare.rsplit(".", 1)[-1], bare.rsplit("/", 1)[-1]):
        if candidate in known:
            return candidate
    squeezed = _squeeze(bare)
    best: tuple[float, int, str] | None = None
    for order, key in enumerate(known):
        if best is not None and abs(len(bare) - len(key)) - key.count("_") > best[0]:
            continue  # cannot be nearer, whatever its letters
        most = best[0] if best else math.inf
        distance = edit_distance(bare, key, most)
        if distance > 1:
            distance = min(distance, edit_distance(squeezed, _squeeze(key), most) + 0.5)
        rank = (distance, order, key)
        best = rank if best is None else min(best, rank)
    if best is None or best[0] > max(1.0, len(bare) / 3):
        return None
    return best[2]


def nearest_word(unknown: str, known: Iterable[str]) -> str | None:
    """The nearest of a few words (the values of a key, the commands), or None when none is near."""
    ranked = sorted((edit_distance(unknown.lower(), word.lower()), word) for word in known)
    return ranked[0][1] if ranked and ranked[0][0] <= max(1.0, len(unknown) / 3) else None


def edit_distance(a: str, b: str, most: float = math.inf) -> float:
    """Insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b`.

    Args:
        most: a distance above it is of no interest; then some number above it is returned.
    """
    before: list[float] = []
    last = [float(j) for j in range(len(b) + 1)]
    for i, left in enumerate(a, 1):
        row = [float(i)]
        for j, right in enumerate(b, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (left != right))
            if i > 1 and j > 1 and left == b[j - 2] and a[i - 2] == right:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        if min(row) > most and min(last) > most:
            return min(row)
        before, last = last, row
    return last[-1]


def _squeeze(key: str) -> str:
    return key.replace("_", "")


def _known() -> list[str]:
    """Every key worth suggesting; at equal distance the earlier one is suggested."""
    declared = list(declared_keys())
    upstream = upstream_keys()
    rest = sorted((fate.fate == NO_EFFECT, key) for key, fate in upstream.items() if key not in declared)
    return [*declared, *ALIASES, *(key for _, key in rest if key not in ALIASES)]
