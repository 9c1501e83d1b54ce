"""One mode of ErnieKit: a training step as the trainer does it, without data and logs.

Run by train_step.py, lora_step.py, moe_step.py and scaling.py.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measure import Work, tell_result, timed, token_rows

# mode -> (compute_type, changes of the optimizer's section)
MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "bf16": ("bf16", {}),
    "bf16_lowprecision_moment": ("bf16", {"use_lowprecision_moment": True}),
    "fp32": ("fp32", {}),
}
LEARNING_RATE = 1e-5
LOGITS_ROWS = 1024


def main() -> None:
    """Time one mode and say the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True)
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--kernels", default="auto")
    parser.add_argument(
        "--sample", type=int, default=0, help="tokens of a packed sample; 0 for the whole row"
    )
    parser.add_argument("--random", action="store_true", help="fresh weights: only config.json is read")
    parser.add_argument("--lora-rank", type=int, default=0, help="rank of an adapter; 0 trains all")
    parser.add_argument("--experts-in-a-loop", action="store_true", help="no grouped products of experts")
    options = parser.parse_args()
    from erniekit.cli.launch import require_paddle

    require_paddle()
    import paddle

    work = Work(**json.loads(options.work))
    if options.experts_in_a_loop:
        use_loop()
    step = build_step(work, options)
    from erniekit.ops.backend import kernels_in_words

    tell_result(timed(step, work, f"ErnieKit, {kernels_in_words()}, Paddle {paddle.__version__}"))


def use_loop() -> None:
    """From now on experts are a loop in Python, and Paddle's operators bring rows to them and back."""
    from erniekit.ops.backend import IMPLEMENTATIONS

    IMPLEMENTATIONS["grouped_linear"]["native"] = f"{__name__}:looped_linear"
    for name in ("dispatch_rows", "combine_rows"):
        del IMPLEMENTATIONS[name]["native"]


def looped_linear(x_MI: Any, weight: Any, offsets: Any) -> Any:
    """`grouped_linear` as one native product after the other."""
    import paddle

    from erniekit.ops.concat import concat
    from erniekit.ops.linear import linear

    bounds = offsets.tolist()
    parts = [
        linear(x_MI[start:stop], of_expert)
        for start, stop, of_expert in zip(bounds[:-1], bounds[1:], paddle.unbind(weight, 0), strict=True)
        if stop > start
    ]
    return concat(parts)


def build_step(work: Work, options: argparse.Namespace) -> Any:
    """The step as a function that returns the mean loss before the update."""
    from erniekit.assemble import Adaptation, build_model, set_device
    from erniekit.config.lora import Lora
    from erniekit.config.optimizer import Optimizer
    from erniekit.optim.build import build_optimizer
    from erniekit.train.objectives import build_objective

    compute_type, changes = MODES[options.mode]
    set_device(device="cpu", seed=0, kernels=options.kernels)
    keys = asdict(Lora(lora_rank=options.lora_rank or 8))
    del keys["lora_path"]
    built = build_model(
        Path(work.folder),
        Adaptation(keys),
        continue_training=not options.random,
        compute_type=compute_type,
        fine_tuning="LoRA" if options.lora_rank else "Full",
        freeze=(),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    settings = asdict(Optimizer(**changes))
    optimizer = build_optimizer(list(built.model.named_parameters()), **settings)
    objective = build_objective("SFT", loss_subbatch_seqlen=LOGITS_ROWS, use_sparse_head_and_loss_fn=True)
    batch = make_batch(work, built.config.vocab_size, options.sample or work.length)
    num_labels = int((batch.labels != -100).sum())

    def step() -> float:
        loss, _ = objective(built.model, batch, scale=1.0 / num_labels)
        loss.backward()
        mean = float(loss)
        del loss  # it keeps what its graph saved
        optimizer.accumulate_grads()
        optimizer.grad_norm_and_clip()
        optimizer.step(LEARNING_RATE)
        optimizer.zero_grad()
        return mean

    return step


def make_batch(work: Work, vocab_size: int, sample: int) -> Any:
    """A full batch of packed samples of `sample` tokens."""
    import numpy as np

    from erniekit.data.pack import Batch

    ids = np.array(token_rows(vocab_size, work), dtype=np.int64)
    starts = np.arange(work.length) // sample * sample
    labels = np.concatenate([ids[:, 1:], np.full((work.batch, 1), -100)], axis=1)
    labels[:, sample - 1 :: sample] = -100
    positions = np.tile(np.arange(work.length, dtype=np.int64) - starts, (work.batch, 1))
    attend_from = np.tile(starts.astype(np.int32), (work.batch, 1))
    return Batch(ids, labels, positions, attend_from, ids.size, [["tokens"]] * work.batch)


if __name__ == "__main__":
    main()
