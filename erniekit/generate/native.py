"""Decoding of new tokens by one native call each, for the models it knows.

A model is known by the names and kinds of its parts: blocks of fused attention and a gated MLP with
RMSNorm before each, as `nn` builds them, their matrices numbers or codes that the kernels read. A model
that holds anything else (experts, adapters, layers that were swapped, hooks, scales that no kernel reads) is
decoded the ordinary way.

With matrices of codes the output layer is read as codes too: as int8 with a scale for each token, made
once for a model, beside the embedding where that is its output layer. So decoding reads a fraction of the
bytes; its logits differ by the rounding of that layer from those that the model itself computes.

    R rows of a step, V vocabulary
"""

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import paddle

from erniekit.nn.cache import KVCache
from erniekit.nn.embedding import Embedding
from erniekit.nn.linear import Linear
from erniekit.nn.norm import RMSNorm
from erniekit.ops import backend
from erniekit.ops.kernels import library
from erniekit.ops.native.decode import (
    TYPES,
    CodedHead,
    DecoderTable,
    LayerTable,
    NativeDecoder,
    reads_codes,
)
from erniekit.ops.quantised import QuantisedMatrix
from erniekit.ops.rope import rotations
from erniekit.ops.rounding import KVRounding

# Parameters of a layer by the field of the table that takes them; biases may be missing.
_LAYER = {
    "attention_norm": "input_layernorm.weight",
    "qkv": "self_attn.qkv_proj.weight",
    "qkv_bias": "self_attn.qkv_proj.bias",
    "out": "self_attn.o_proj.weight",
    "out_bias": "self_attn.o_proj.bias",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate_up": "mlp.up_gate_proj.weight",
    "gate_up_bias": "mlp.up_gate_proj.bias",
    "down": "mlp.down_proj.weight",
    "down_bias": "mlp.down_proj.bias",
}
_OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "lm_head.bias")
_KINDS = (Linear, RMSNorm, Embedding)
_heads: WeakKeyDictionary[Any, tuple[bytes, CodedHead]] = WeakKeyDictionary()


def decoder_table(model: Any) -> DecoderTable | None:
    """What the native decoder needs of a model; None for a model that is not of its kind."""
    if not isinstance(model, paddle.nn.Layer) or model.training or not _is_plain(model):
        return None
    parameters = dict(model.named_parameters())
    codes = _quantised(model)
    given = {**parameters, **codes}
    config = model.config
    layers = range(config.num_hidden_layers)
    wanted = {f"model.layers.{layer}.{name}" for layer in layers for name in _LAYER.values()}
    needed = {name for name in wanted if not name.endswith("bias")} | set(_OUTSIDE[:2])
    if not needed <= given.keys() <= wanted | set(_OUTSIDE):
        return None
    types = {parameter.dtype for parameter in parameters.values()}
    if len(types) > 1 or not types <= TYPES.keys():
        return None
    kept = {
        name.removesuffix("self_attn"): layer.kv_rounding
        for name, layer in model.named_sublayers()
        if name.endswith(".self_attn")
    }
    for rounding in kept.values():
        if rounding is not None and (type(rounding) is not KVRounding or rounding.number != "int8"):
            return None
    matrices = {name for name in needed if len(given[name].shape) == 2} - set(_OUTSIDE)
    if codes and (codes.keys() != matrices or not all(map(reads_codes, codes.values()))):
        return None
    embedding = given["model.embed_tokens.weight"]
    head = given.get("lm_head.weight", embedding)
    return DecoderTable(
        embedding=embedding,
        layers=[_layer(given, f"model.layers.{layer}.", kept[f"model.layers.{layer}."]) for layer in layers],
        final_norm=given["model.norm.weight"],
        head=_coded_head(model, head, tied=head is embedding) if codes else head,
        head_bias=given.get("lm_head.bias"),
        tied=head is embedding,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        epsilon=config.rms_norm_eps,
    )


def _quantised(model: paddle.nn.Layer) -> dict[str, QuantisedMatrix]:
    """Quantised matrices by the name that the parameter had."""
    layers = ((f"{name}.weight", getattr(layer, "weight", None)) for name, layer in model.named_sublayers())
    return {name: weight for name, weight in layers if isinstance(weight, QuantisedMatrix)}


def _coded_head(model: Any, weight: paddle.Tensor, *, tied: bool) -> CodedHead:
    """Codes of the output layer of a model, kept until it changes."""
    # Every thousandth number: a version that Paddle counts does not tell of `set_value`.
    state = weight.flatten()[::997].numpy().tobytes()
    kept = _heads.get(model)
    if kept is None or kept[0] != state:
        raw = weight.numpy()
        kept = _heads[model] = (state, CodedHead.of(raw.T if tied else raw))
    return kept[1]


def _layer(given: Mapping[str, Any], prefix: str, kept: KVRounding | None) -> LayerTable:
    scales = {} if kept is None else {"key_scales": kept.keys, "value_scales": kept.values}
    return LayerTable(**{field: given.get(prefix + name) for field, name in _LAYER.items()}, **scales)


def _is_plain(model: paddle.nn.Layer) -> bool:
    """Whether all that holds parameters is exactly a layer that the table describes, and nothing listens."""
    for name, layer in model.named_sublayers(include_self=True):
        if layer._forward_pre_hooks or layer._forward_post_hooks:
            return False
        # A tied output layer that holds no more than a bias is the model's own.
        if layer._parameters and type(layer) not in _KINDS and name != "lm_head":
            return False
    return True


class NativeSteps:
    """Steps of one batch over its cache, after the prompts went through the model.

    Args:
        padding: columns before the first real one, by row of the cache.
    """

    def __init__(
        self, table: DecoderTable, cache: KVCache, padding: np.ndarray, *, rope_theta: float
    ) -> None:
        turns = rotations(paddle.arange(cache.max_columns).unsqueeze(0), cache.head_dim, rope_theta)
        turns_SD = paddle.as_real(turns).numpy().reshape([cache.max_columns, cache.head_dim])
        self._cache = cache
        self._padding = padding
        self._decoder = NativeDecoder(
            library.load(),
            table,
            keys=cache.keys,
            values=cache.values,
            turns_SD=np.ascontiguousarray(turns_SD),
            most_rows=len(padding),
        )

    def step(self, ids_R: Sequence[int], rows: Sequence[int]) -> np.ndarray:
        """Take in one token for each of these rows; logits [R, V] after it, valid until the next step."""
        slots_R = np.asarray(rows)
        logits_RV = self._decoder.step(
            np.asarray(ids_R), slots_R, self._padding[slots_R], column=self._cache.length
        )
        self._cache.advance(1)
        return logits_RV


def native_steps(model: Any, cache: KVCache, padding: np.ndarray) -> NativeSteps | None:
    """The native way to decode where it runs and knows the model, else None."""
    if backend.current_backend() != "native":
        return None
    table = decoder_table(model)
    if table is None:
        return None
    return NativeSteps(table, cache, padding, rope_theta=model.config.rope_theta)
