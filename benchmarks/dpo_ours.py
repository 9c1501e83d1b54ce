"""One mode of ErnieKit: a DPO step as the trainer does it, without data and logs. Run by dpo_step.py."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measure import Work, tell_result, timed, token_rows

MODES = ("bf16", "fp32")
LEARNING_RATE = 1e-6
LOGITS_ROWS = 1024


def main() -> None:
    """Time one mode and say the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True)
    parser.add_argument("--mode", choices=MODES, required=True)
    options = parser.parse_args()
    from erniekit.cli.launch import require_paddle

    require_paddle()
    import paddle

    work = Work(**json.loads(options.work))
    step = build_step(work, options.mode)
    from erniekit.ops.backend import kernels_in_words

    tell_result(timed(step, work, f"ErnieKit, {kernels_in_words()}, Paddle {paddle.__version__}"))


def build_step(work: Work, compute_type: str) -> Any:
    """The step as a function that returns the loss before the update."""
    from erniekit.assemble import build_model, set_device
    from erniekit.config.optimizer import Optimizer
    from erniekit.config.preference import Preference
    from erniekit.optim.build import build_optimizer
    from erniekit.train.dpo import PreferenceObjective, PreferenceSettings
    from erniekit.train.reference import CachedReference, ModelReference

    set_device(device="cpu", seed=0)
    built = build_model(
        Path(work.folder),
        continue_training=True,
        compute_type=compute_type,
        fine_tuning="Full",
        freeze=(),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    optimizer = build_optimizer(list(built.model.named_parameters()), **asdict(Optimizer()))
    batch = make_batch(work, built.config.vocab_size)
    scored = ModelReference(built.model, None, loss_subbatch_seqlen=LOGITS_ROWS).of(None, batch)
    answers = zip(batch.pairs, scored.chosen_P.tolist(), scored.rejected_P.tolist(), strict=True)
    reference = CachedReference({place.key: (chosen, rejected) for place, chosen, rejected in answers})
    settings = PreferenceSettings(**asdict(Preference(normalize_logps=False)))
    objective = PreferenceObjective(settings, reference, loss_subbatch_seqlen=LOGITS_ROWS)

    def step() -> float:
        objective.begin_step([batch])
        loss, _ = objective(built.model, batch, scale=1.0)
        loss.backward()
        value = float(loss)
        del loss  # it keeps what its graph saved
        optimizer.accumulate_grads()
        optimizer.grad_norm_and_clip()
        optimizer.step(LEARNING_RATE)
        optimizer.zero_grad()
        return value

    return step


def make_batch(work: Work, vocab_size: int) -> Any:
    """Pairs of a prompt of half of the length and answers of a quarter each, one pair a row."""
    from erniekit.data.pack import collate
    from erniekit.data.sample import make_pair

    half, quarter = work.length // 2, work.length // 4
    packs = []
    for row in token_rows(vocab_size, work):
        prompt, chosen = row[:half], row[half : half + quarter]
        rejected = row[half + quarter : half + 2 * quarter]
        sides = [(prompt + answer, [-100] * half + answer) for answer in (chosen, rejected)]
        packs.append((make_pair(*sides, 1.0, "tokens"),))
    return collate(packs, pad_id=0)


if __name__ == "__main__":
    main()
