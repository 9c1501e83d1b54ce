"""One mode of the peer: a training step of transformers on PyTorch, with the settings that serve it best.

Run by train_step.py, lora_step.py, moe_step.py and scaling.py with an interpreter that has torch and
transformers.

* as many threads as cores, scaled-dot-product attention, the fused AdamW
* logits only where there is a label; with `--chunk N` of N positions at a time, each differentiated at
  once, so that nothing is computed twice and of the logits only one chunk is held
* memory that glibc keeps between steps (MALLOC_* is set by the caller)
"""

import argparse
import json
from typing import Any

import torch
import transformers
from measure import Work, tell_result, timed, token_rows, usable_cores

MODES = ("fp32", "bf16_autocast", "bf16_pure")
LEARNING_RATE = 1e-5


def main() -> None:
    """Time one mode and say the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True)
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--chunk", type=int, default=0, help="positions whose logits are held; 0 for all")
    parser.add_argument("--random", action="store_true", help="fresh weights: only config.json is read")
    parser.add_argument("--lora-rank", type=int, default=0, help="rank of an adapter; 0 trains all")
    parser.add_argument("--experts", help="implementation of a mixture of experts: eager, grouped_mm")
    options = parser.parse_args()
    torch.set_num_threads(usable_cores())
    work = Work(**json.loads(options.work))
    model = load(work.folder, options.mode, fresh=options.random, experts=options.experts)
    name = f"transformers {transformers.__version__}, torch {torch.__version__}"
    if options.lora_rank:
        model, version = adapted(model, options.lora_rank)
        name = f"peft {version}, {name}"
    tell_result(timed(Step(model, work, options.mode, options.chunk), work, name))


def load(folder: str, mode: str, *, fresh: bool, experts: str | None = None) -> Any:
    """The model in training mode."""
    dtype = torch.bfloat16 if mode == "bf16_pure" else torch.float32
    kind = transformers.AutoModelForCausalLM
    chosen = {"attn_implementation": "sdpa", **({"experts_implementation": experts} if experts else {})}
    if fresh:
        config = transformers.AutoConfig.from_pretrained(folder)
        model = kind.from_config(config, dtype=dtype, **chosen)
    else:
        model = kind.from_pretrained(folder, dtype=dtype, **chosen)
    return model.train()


def adapted(model: Any, rank: int) -> tuple[Any, str]:
    """The model with LoRA on all its linear layers, by peft in its usual settings, and peft's version."""
    import peft

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config).base_model.model.train(), peft.__version__


class Step:
    """Forward, loss, backward, clipping, update."""

    def __init__(self, model: Any, work: Work, mode: str, chunk: int) -> None:
        self.model, self.mode = model, mode
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        self.ids = torch.tensor(token_rows(model.config.vocab_size, work))
        self.labels = self.ids[:, 1:].reshape(-1)
        self.chunk = chunk or len(self.labels)

    def __call__(self) -> float:
        """The mean loss before the update."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.mode == "bf16_autocast"):
            hidden = self.model.model(input_ids=self.ids, use_cache=False).last_hidden_state
        rows = hidden[:, :-1].reshape(-1, hidden.shape[-1])
        leaf = rows.detach().requires_grad_()
        total = sum(self._chunk(leaf, start) for start in range(0, len(leaf), self.chunk))
        rows.backward(leaf.grad)
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _chunk(self, leaf: Any, start: int) -> float:
        labels = self.labels[start : start + self.chunk]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.mode == "bf16_autocast"):
            logits = self.model.lm_head(leaf[start : start + self.chunk])
            summed = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
            loss = summed / len(self.labels)
        loss.backward()
        return float(loss.detach())


if __name__ == "__main__":
    main()
