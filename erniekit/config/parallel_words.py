"""Upstream's strings of words about several devices: `key: "word word"`.

No word changes what is computed. Those of the table are accepted, each with what becomes of it here; one
that is not in it is a mistake, and one that asks for what ErnieKit cannot do is refused.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from erniekit.config.fields import key

_ALWAYS = "is always so here"
_OVERLAP = "what overlaps with communication is not a setting here"
_SHAPES = "both sides know the shape of every message here"
_LOSS = "the loss is divided once, by the trained tokens of the whole step"
_SYNC = "what processes hold in common is made equal at the start, and stays so"
_MEMORY = "the results are the same, and memory is not lowered by the word"
_FUSED = "what is fused is not a setting here"

# key -> word -> why it has no effect of its own.
WITHOUT_EFFECT: dict[str, dict[str, str]] = {
    "pipeline_parallel_config": {
        "disable_p2p_cache_shape": _SHAPES,
        "enable_dynamic_shape": _SHAPES,
        "disable_partial_send_recv": f"a tensor is sent whole: it {_ALWAYS}",
        "disable_batch_p2p_comm": _OVERLAP,
        "disable_non_batch_p2p_comm": _OVERLAP,
        "enable_overlap_p2p_comm": f"a message is sent beside the computation: it {_ALWAYS}",
        "enable_delay_scale_loss": _LOSS,
        "enable_dp_comm_overlap": _OVERLAP,
        "enable_sharding_comm_overlap": _OVERLAP,
        "enable_timer": f"times are in the report: it {_ALWAYS}",
        "enable_release_grads": f"gradients are released after every update: it {_ALWAYS}",
        "enable_clear_every_step_cache": f"nothing is kept from step to step: it {_ALWAYS}",
        "enable_offload_queue": _MEMORY,
        "best_unbalanced_scheduler": "pp_seg_method: auto balances the stages",
    },
    "tensor_parallel_config": {
        "enable_delay_scale_loss": _LOSS,
        "enable_mp_async_allreduce": _OVERLAP,
        "enable_sp_async_reduce_scatter": _OVERLAP,
        "enable_mp_skip_c_identity": _FUSED,
        "enable_mp_fused_linear_param_grad_add": _FUSED,
        "replace_with_c_embedding": _FUSED,
        "replace_with_parallel_cross_entropy": f"logits are never gathered: it {_ALWAYS}",
        "sync_param": _SYNC,
        "sync_grad": _SYNC,
        "sync_moment": _SYNC,
    },
    "sharding_parallel_config": {
        "split_param": "every process updates the part that it holds",
        "enable_stage1_overlap": _OVERLAP,
        "enable_stage2_overlap": _OVERLAP,
        "enable_stage1_allgather_overlap": _OVERLAP,
        "enable_stage1_broadcast_overlap": _OVERLAP,
        "enable_stage1_tensor_fusion": _FUSED,
        "enable_tensor_fusion": _FUSED,
        "enable_fuse_optimizer_states": _FUSED,
        "disable_stage1_reduce_avg": _LOSS,
        "enable_release_grads": f"gradients are released after every update: it {_ALWAYS}",
    },
    "data_parallel_config": {
        "enable_allreduce_avg_in_gradinent_scale": _LOSS,
        "gradient_sync_after_accumulate": f"gradients are summed once a step: it {_ALWAYS}",
    },
    "sequence_parallel_config": {
        "enable_allreduce_avg_in_gradinent_scale": _LOSS,
        "gradient_sync_after_accumulate": f"gradients are summed once a step: it {_ALWAYS}",
    },
}
# key -> word -> what is missing.
REFUSED: dict[str, dict[str, str]] = {
    "pipeline_parallel_config": {
        "use_dualpipev": "the schedule of two directions is not built; leave the word out",
        "auto_parallel_sync_shared_params": "automatic parallelism is not built; leave the word out",
    },
}


def wrong_word(key: str, text: str) -> str | None:
    """Why the words of a key are not allowed, or None."""
    for word in text.replace(",", " ").split():
        if reason := REFUSED.get(key, {}).get(word):
            return f"{word}: {reason}"
        if word not in WITHOUT_EFFECT[key]:
            from erniekit.config.suggest import nearest_word

            near = nearest_word(word, WITHOUT_EFFECT[key])
            known = f"did you mean {near}?" if near else f"known are {', '.join(WITHOUT_EFFECT[key])}"
            return f"{word} is no word of it; {known}"
    return None


def words_without_effect(
    *,
    pipeline_parallel_config: str,
    tensor_parallel_config: str,
    sharding_parallel_config: str,
    data_parallel_config: str,
    sequence_parallel_config: str,
) -> list[tuple[str, str]]:
    """("word (key)", what becomes of it) of every word that was given."""
    given = {
        "pipeline_parallel_config": pipeline_parallel_config,
        "tensor_parallel_config": tensor_parallel_config,
        "sharding_parallel_config": sharding_parallel_config,
        "data_parallel_config": data_parallel_config,
        "sequence_parallel_config": sequence_parallel_config,
    }
    return [
        (f"{word} ({name})", WITHOUT_EFFECT[name][word])
        for name, text in given.items()
        for word in text.replace(",", " ").split()
    ]


def _words_key(name: str) -> str:
    help = f"words about {name.split('_')[0]} parallelism, with spaces between them"
    found: str = key("", help, check=partial(wrong_word, name), pattern_help="known words")
    return found


@dataclass(frozen=True, kw_only=True)
class ParallelWords:
    """Upstream's words about parallelism: none changes a result, and each says what becomes of it here."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.config.parallel_words:words_without_effect",)

    pipeline_parallel_config: str = _words_key("pipeline_parallel_config")
    tensor_parallel_config: str = _words_key("tensor_parallel_config")
    sharding_parallel_config: str = _words_key("sharding_parallel_config")
    data_parallel_config: str = _words_key("data_parallel_config")
    sequence_parallel_config: str = _words_key("sequence_parallel_config")
