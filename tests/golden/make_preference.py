"""Make the golden numbers of the preference losses from TRL.

Needs an environment of its own (no Paddle):

    python -m venv parity && parity/bin/pip install torch==2.13.0 trl==1.16.0 'numpy<2.4'
    parity/bin/python tests/golden/make_preference.py

TRL's own loss functions are called, the DPO one through a model that returns log-probabilities of
tokens; what is stored is the mean loss and its gradient to each of them, in double precision. Lengths
differ within a pair. `or` is TRL's odds-ratio loss without its factor.
"""

import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

HERE = Path(__file__).parent
BETA, GAMMA = 0.1, 0.5
# Tokens of the chosen and of the rejected answers.
LENGTHS = ((5, 3, 7, 1), (2, 6, 7, 4))
DPO = ("sigmoid", "hinge", "ipo", "nca_pair", "sppo_hard")


def draw(seed: int, scale: float) -> list[list[list[float]]]:
    """Log-probabilities of the tokens of the chosen and of the rejected answers."""
    random = np.random.default_rng(seed)
    return [[(-random.gamma(1.5, scale, n)).tolist() for n in lengths] for lengths in LENGTHS]


def dpo(loss_type: str, policy: Any, reference: Any) -> tuple[Any, dict[str, float]]:
    """TRL's loss of a batch, and its metrics."""
    from trl.trainer.dpo_trainer import DPOTrainer

    lengths = [n for side in LENGTHS for n in side]
    width, rows = max(lengths) + 1, len(lengths)
    mask = torch.zeros(rows, width, dtype=torch.long)
    for row, n in enumerate(lengths):
        mask[row, 1 : n + 1] = 1  # one token of a prompt before the answer
    parts = []
    for tokens in [*policy[0], *policy[1]]:
        parts.append(torch.cat([tokens, torch.zeros(width - 1 - len(tokens), dtype=torch.float64)]))
    log_probs = torch.stack(parts)
    sums = [torch.stack([tokens.sum() for tokens in side]) for side in reference]
    outputs = SimpleNamespace(
        log_probs=log_probs,
        entropy=torch.zeros_like(log_probs),
        mean_logits=torch.zeros_like(log_probs),
        is_top1=torch.zeros_like(log_probs, dtype=torch.bool),
    )
    metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}
    same = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x, device="cpu")
    trainer = SimpleNamespace(
        **dict(model=SimpleNamespace(training=True), accelerator=same, aux_loss_enabled=False, ld_alpha=None),
        **dict(precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[loss_type]),
        **dict(loss_weights=[1.0], beta=BETA, label_smoothing=0.0, use_weighting=False, _metrics=metrics),
        **dict(_total_train_tokens=0, _tp_size=1),
    )
    inputs = {
        "input_ids": torch.zeros(rows, width, dtype=torch.long),
        "attention_mask": torch.ones(rows, width, dtype=torch.long),
        "completion_mask": mask,
        "ref_chosen_logps": sums[0],
        "ref_rejected_logps": sums[1],
    }
    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    names = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen")
    return loss, {name: metrics["train"][name][0] for name in (*names, "logps/rejected")}


def averaged(policy: Any) -> list[Any]:
    return [torch.stack([tokens.mean() for tokens in side]) for side in policy]


def simpo(policy: Any, smoothing: float) -> Any:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    trainer = SimpleNamespace(
        alpha=0.0,
        accelerator=SimpleNamespace(device="cpu"),
        loss_type="simpo",
        beta=BETA,
        simpo_gamma=GAMMA,
        label_smoothing=smoothing,
    )
    return CPOTrainer.cpo_loss(trainer, *averaged(policy))[0].mean()


def odds_ratio(policy: Any) -> Any:
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    trainer = SimpleNamespace(beta=1.0, accelerator=SimpleNamespace(device="cpu"))
    return -ORPOTrainer.odds_ratio_loss(trainer, *averaged(policy))[0].mean()


def main() -> None:
    policy_values, reference_values = draw(1, 0.8), draw(2, 0.9)
    cases: dict[str, Any] = {}
    works = {name: (lambda p, r, name=name: dpo(name, p, r)) for name in DPO}
    works["simpo"] = lambda p, r: (simpo(p, 0.0), {})
    works["simpo_smoothed"] = lambda p, r: (simpo(p, 0.2), {})
    works["or"] = lambda p, r: (odds_ratio(p), {})
    for name, work in works.items():
        policy = [
            [torch.tensor(tokens, dtype=torch.float64, requires_grad=True) for tokens in side]
            for side in policy_values
        ]
        reference = [[torch.tensor(t, dtype=torch.float64) for t in side] for side in reference_values]
        loss, metrics = work(policy, reference)
        loss.backward()
        gradients = [[tokens.grad.tolist() for tokens in side] for side in policy]
        cases[name] = {"loss": loss.item(), "gradients": gradients, "metrics": metrics}
    import trl

    made = {
        **{"trl": trl.__version__, "beta": BETA, "simpo_gamma": GAMMA},
        **{"policy": policy_values, "reference": reference_values, "cases": cases},
    }
    (HERE / "preference.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch

    sys.exit(main())
