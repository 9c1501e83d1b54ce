"""One mode of the peer: a DPO step with TRL's own loss. Run by dpo_step.py, with torch, transformers, trl.

* the trainer is made as usual, which gives the model TRL's fused output layer; its `compute_loss` runs
* no gradient checkpointing; the reference's log-probabilities come from beforehand
* as many threads as cores, scaled-dot-product attention, the fused AdamW, memory kept between steps
"""

import argparse
import json
import tempfile
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from measure import Work, tell_result, timed, token_rows, usable_cores
from trl.trainer.dpo_trainer import DataCollatorForPreference

MODES = ("fp32", "bf16_autocast", "bf16_pure")
LEARNING_RATE = 1e-6


def main() -> None:
    """Time one mode and say the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True)
    parser.add_argument("--mode", choices=MODES, required=True)
    options = parser.parse_args()
    torch.set_num_threads(usable_cores())
    work = Work(**json.loads(options.work))
    name = f"TRL {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    tell_result(timed(Step(work, options.mode), work, name))


class Step:
    """Forward, loss, backward, clipping, update."""

    def __init__(self, work: Work, mode: str) -> None:
        dtype = torch.bfloat16 if mode == "bf16_pure" else torch.float32
        model = transformers.AutoModelForCausalLM.from_pretrained(
            work.folder, dtype=dtype, attn_implementation="sdpa"
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(work.folder)
        self.autocast = mode == "bf16_autocast"
        arguments = trl.DPOConfig(
            output_dir=tempfile.mkdtemp(),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            precompute_ref_log_probs=True,
            beta=0.1,
            max_length=None,
            report_to=[],
        )
        words = {"prompt": ["a"], "chosen": [" b"], "rejected": [" c"]}
        self.trainer = trl.DPOTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict(words), processing_class=tokenizer
        )
        self.model = self.trainer.model.train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
        )
        self.inputs = DataCollatorForPreference(pad_token_id=0)(self._examples(work))
        pairs = torch.zeros(work.batch)
        self.inputs |= {"ref_chosen_logps": pairs, "ref_rejected_logps": pairs.clone()}
        self._score()

    def _examples(self, work: Work) -> list[dict[str, Any]]:
        half, quarter = work.length // 2, work.length // 4
        return [
            {
                "prompt_ids": row[:half],
                "chosen_ids": row[half : half + quarter],
                "rejected_ids": row[half + quarter : half + 2 * quarter],
            }
            for row in token_rows(self.model.config.vocab_size, work)
        ]

    def _score(self) -> None:
        """The reference's log-probabilities, as TRL sums them."""
        labels = self.inputs["input_ids"].masked_fill(self.inputs["completion_mask"] == 0, -100)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
            outputs = self.model(
                input_ids=self.inputs["input_ids"],
                attention_mask=self.inputs["attention_mask"],
                use_cache=False,
                labels=labels,
                fused_lm_head=True,
            )
        sums = outputs.log_probs[:, -(labels.shape[1] - 1) :].sum(dim=1)
        self.inputs["ref_chosen_logps"], self.inputs["ref_rejected_logps"] = sums.chunk(2)

    def __call__(self) -> float:
        """The loss before the update."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
            loss = self.trainer.compute_loss(self.model, self.inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


if __name__ == "__main__":
    main()
