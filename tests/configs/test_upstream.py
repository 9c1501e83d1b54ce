"""Configurations with every key that upstream's users write for mixtures of experts are right as they are."""

from pathlib import Path

import pytest

from erniekit.config.load import load_config
from erniekit.errors import ConfigError, UnsupportedError
from erniekit.train.session import train_session

# The keys and values of such a file, for SFT of all parameters on eight devices.
MODEL = """
model_name_or_path: baidu/ERNIE-4.5-21B-A3B-Paddle
moe_group: mp
fine_tuning: Full
fuse_rope: True
use_sparse_head_and_loss_fn: True
"""
DATA = """
train_dataset_type: "erniekit"
eval_dataset_type: "erniekit"
train_dataset_path: "./examples/data/sft-train.jsonl"
train_dataset_prob: "1.0"
eval_dataset_path: "./examples/data/sft-eval.jsonl"
eval_dataset_prob: "1.0"
max_seq_len: 8192
num_samples_each_epoch: 6000000
"""
TRAINING = """
stage: SFT
seed: 23
do_train: True
do_eval: True
distributed_dataloader: False
dataloader_num_workers: 1
batch_size: 1
num_train_epochs: 1
max_steps: 100
max_evaluate_steps: 10000
eval_steps: 10000
evaluation_strategy: steps
save_steps: 10000000
save_total_limit: 5
save_strategy: steps
logging_steps: 1
release_grads: True
gradient_accumulation_steps: 8
logging_dir: ./vdl_log
output_dir: ./output
disable_tqdm: True
warmup_steps: 20
learning_rate: 1.0e-5
lr_scheduler_type: cosine
min_lr: 1.0e-6
layerwise_lr_decay_bound: 1.0
weight_decay: 0.1
adam_epsilon: 1.0e-8
adam_beta1: 0.9
adam_beta2: 0.95
offload_optim: True
"""
DEVICES = """
tensor_parallel_degree: 4
pipeline_parallel_degree: 2
sharding_parallel_degree: 1
sharding: stage1
sequence_parallel: True
pipeline_parallel_config: enable_delay_scale_loss enable_release_grads disable_partial_send_recv
recompute: True
recompute_use_reentrant: True
compute_type: bf16
fp16_opt_level: O2
disable_ckpt_quant: True
amp_master_grad: True
amp_custom_white_list: [lookup_table, matmul]
amp_custom_black_list: [reduce_sum, sin]
unified_checkpoint: True
"""
OF_EXPERTS = """
moe_multimodal_dispatch_use_allgather: v2-alltoall-unpad
moe_group_experts: False
moe_aux_loss_lambda: 1.0e-5
moe_orthogonal_loss_lambda: 0.0
moe_z_loss_lambda: 0.0
moe_use_hard_gate: False
moe_use_aux_free: True
moe_use_aux_free_update_coef: 0.001
moe_gate: top2_fused
use_moe: True
use_recompute_moe: True
num_nextn_predict_layers: 1
multi_token_pred_lambda: 0.3
"""


@pytest.mark.parametrize("more", ["", OF_EXPERTS], ids=["as shipped", "with the keys of experts"])
@pytest.mark.parametrize("model", ["21B-A3B-Paddle", "21B-A3B-PT", "21B-A3B-Thinking", "300B-A47B-Paddle"])
def test_it_is_right_and_is_refused_when_it_starts_on_one_device(
    tmp_path: Path, model: str, more: str
) -> None:
    text = (MODEL + DATA + TRAINING + DEVICES + more).replace("21B-A3B-Paddle", model)
    path = tmp_path / "run.yaml"
    path.write_text(text)
    for verb in ("check", "train"):
        loaded = load_config(path, (), verb=verb)
    assert loaded.config.parallel.tensor_parallel_degree == 4
    # A block of multi-token prediction is what the published numbers do not have.
    large, small = ("5,409", "395") if more else ("5,391", "393")
    needed = f"holds {large if '300B' in model else small} GB"
    with pytest.raises(UnsupportedError, match=f"asks for 8 devices[\\s\\S]*{needed}"):
        train_session(loaded)


@pytest.mark.parametrize(("model", "needed"), [("21B-A3B-Paddle", "12 GB"), ("300B-A47B-Paddle", "158 GB")])
def test_an_adapter_over_quantised_experts(tmp_path: Path, model: str, needed: str) -> None:
    """Upstream's wint8mix: what it holds is little more than weights in 4 and 8 bits."""
    text = (MODEL + DATA + TRAINING + DEVICES).replace("21B-A3B-Paddle", model)
    text = text.replace("fine_tuning: Full", "fine_tuning: LoRA\nlora_rank: 32")
    path = tmp_path / "run.yaml"
    path.write_text(text.replace("compute_type: bf16", "compute_type: wint4/8"))
    for verb in ("check", "train"):
        loaded = load_config(path, (), verb=verb)
    assert (loaded.config.model.fine_tuning, loaded.config.model.compute_type) == ("LoRA", "wint4/8")
    with pytest.raises(UnsupportedError, match=f"this run holds {needed} \\(weights {needed}\\)"):
        train_session(loaded)
    path.write_text(
        text.replace("LoRA\nlora_rank: 32", "Full").replace("compute_type: bf16", "compute_type: nf4")
    )
    with pytest.raises(ConfigError, match="compute_type: nf4 keeps weights in few bits.*fine_tuning: Full"):
        load_config(path, (), verb="train")
