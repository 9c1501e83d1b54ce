"""The model card: `README.md` of an export, with what is known of the run and nothing that is not.

Figures come from the checkpoint itself (`trainer_state.json`, `erniekit.yaml`) and from the log of
the run folder above it. A model that was never trained here gets a card without them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from erniekit import __version__

# Keys of a run's configuration worth telling, where they are set.
_TOLD = (
    "stage",
    "fine_tuning",
    "train_dataset_path",
    "eval_dataset_path",
    "max_seq_len",
    "packing",
    "learning_rate",
    "lr_scheduler_type",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "compute_type",
    "seed",
)


_LAYOUTS = {"hf": "Hugging Face layout", "paddle": "Paddle layout", "gguf": "GGUF"}


@dataclass(frozen=True)
class RunFacts:
    """What a checkpoint tells about the run that made it; empty for a model from elsewhere."""

    step: int | None = None
    num_tokens: int | None = None
    total_steps: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluations: tuple[Mapping[str, float], ...] = ()

    @property
    def base_model(self) -> str | None:
        """What the run started from."""
        return self.settings.get("model_name_or_path")

    def held_out(self) -> tuple[float | None, float | None]:
        """Held-out loss before training, and at this checkpoint (or the last one before it)."""
        before = [row["eval_loss"] for row in self.evaluations if row["step"] == 0]
        last = self.step or 0
        after = [row["eval_loss"] for row in self.evaluations if 0 < row["step"] <= last]
        return (before[0] if before else None), (after[-1] if after else None)


def read_run_facts(checkpoint: Path) -> RunFacts:
    """Collect what is known about the run of a checkpoint folder."""
    state = _read_json(checkpoint / "trainer_state.json")
    if not state:
        return RunFacts()
    settings: dict[str, Any] = {}
    for folder in (checkpoint, checkpoint.parent):
        if (folder / "erniekit.yaml").exists():
            settings = yaml.safe_load((folder / "erniekit.yaml").read_text(encoding="utf-8")) or {}
            break
    progress = state.get("progress", {})
    rows = {int(row["step"]): row for row in _logged_evaluations(checkpoint.parent)}
    rows |= {int(row["step"]): row for row in progress.get("evaluations", ()) if "eval_loss" in row}
    return RunFacts(
        step=state.get("step"),
        num_tokens=progress.get("num_tokens"),
        total_steps=state.get("total_steps"),
        settings=settings,
        evaluations=tuple(rows[step] for step in sorted(rows)),
    )


def build_card(
    facts: RunFacts,
    *,
    title: str,
    layout: str,
    dtype: str,
    num_parameters: int,
    verified: str,
    has_template: bool,
) -> str:
    """Text of the card.

    Args:
        title: name of the model.
        layout: `hf`, `paddle` or `gguf`.
        dtype: as in config.json.
        verified: what the comparison with the source found, one sentence.
        has_template: whether the export carries a chat template.
    """
    parts = [
        _front_matter(facts, layout),
        f"# {title}\n",
        f"{_count(num_parameters)} parameters, {dtype}, "
        f"{_LAYOUTS[layout]}; exported by ErnieKit {__version__}.\n",
        f"Compared with its source after export: {verified}.\n",
    ]
    if facts.step is not None:
        parts.append(_training_section(facts))
    parts.append(_use_section(layout, has_template))
    return "\n".join(parts)


def _front_matter(facts: RunFacts, layout: str) -> str:
    fields: dict[str, Any] = {
        "library_name": {"hf": "transformers", "paddle": "PaddlePaddle", "gguf": "gguf"}[layout],
        "pipeline_tag": "text-generation",
        "tags": ["ERNIE4.5", "erniekit"],
    }
    base = facts.base_model
    # The card's base_model field must be a hub id; a local path there would be refused by the hub.
    if base and base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists():
        fields = {"base_model": base, **fields}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---\n"


def _training_section(facts: RunFacts) -> str:
    lines = ["## Training\n"]
    before, after = facts.held_out()
    rows = [("base model", facts.base_model), ("optimizer steps", _steps(facts))]
    rows.append(("trained tokens", f"{facts.num_tokens:,}" if facts.num_tokens else None))
    rows.append(("held-out loss before training", f"{before:.4f}" if before is not None else None))
    rows.append(("held-out loss of this checkpoint", f"{after:.4f}" if after is not None else None))
    rows += [(f"`{key}`", facts.settings.get(key)) for key in _TOLD]
    lines.append("| | |\n|---|---|")
    lines += [f"| {name} | {_cell(value)} |" for name, value in rows if value not in (None, "", [])]
    return "\n".join(lines) + "\n"


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f} million" if number >= 10**6 else f"{number:,}"


def _steps(facts: RunFacts) -> str:
    return f"{facts.step} of {facts.total_steps}" if facts.total_steps else str(facts.step)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _use_section(layout: str, has_template: bool) -> str:
    if layout == "gguf":
        return "## Use\n\n```bash\nllama-cli -m path/to/this/folder/model-*.gguf\n```\n"
    if layout != "hf":
        return (
            "## Use\n\n```bash\nerniekit chat path/to/this/folder\n```\n\n"
            "FastDeploy reads this layout:\n\n"
            "```bash\npython -m fastdeploy.entrypoints.openai.api_server --model path/to/this/folder\n```\n"
        )
    if has_template:
        prompt = (
            'messages = [{"role": "user", "content": "What is the capital of France?"}]\n'
            "inputs = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n)\n'
        )
    else:
        prompt = 'inputs = tokenizer("Once upon a time", return_tensors="pt", add_special_tokens=False)\n'
    return (
        "## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "path/to/this/folder"\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        f"{prompt}"
        "output = model.generate(**inputs, max_new_tokens=100)\n"
        'answer = output[0, inputs["input_ids"].shape[1] :]\n'
        "print(tokenizer.decode(answer, skip_special_tokens=True))\n```\n\n"
        "```bash\nerniekit chat path/to/this/folder\n```\n"
    )


def _logged_evaluations(run_folder: Path) -> list[dict[str, float]]:
    path = run_folder / "train_log.jsonl"
    if not path.exists():
        return []
    # A killed run may have left half a line at the end; only complete lines count.
    complete = path.read_text(encoding="utf-8").rpartition("\n")[0]
    rows = [json.loads(line) for line in complete.splitlines() if line]
    return [row for row in rows if "eval_loss" in row]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
