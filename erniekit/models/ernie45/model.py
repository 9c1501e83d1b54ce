"""The ERNIE 4.5 decoder: architecture only.

Pre-norm blocks, x += Attention(RMSNorm(x)); x += MLP(RMSNorm(x)), a last RMSNorm, and an output
layer that is the embedding table when tied. In a mixture of experts some layers have experts in
place of the MLP. A block hands on the stream and what is yet to be added to it, since the next norm
adds and normalises in one pass over memory. Precision, adapters, distribution and recomputation
are applied from outside.

Multi-token prediction: block d (d = 1, 2, ...) sees, at position t, the stream h of the one before it
(before its last norm) and the embedding e of the token at t + d,

    x = projection([RMSNorm(e) | RMSNorm(h)]),    h' = block(x),

and the shared last norm and head make of h' the logits of the token at t + d + 1.

    B batch, T positions, H hidden size, N rows of hidden states, V vocabulary
"""

from collections.abc import Collection, Mapping
from typing import Any

import paddle
from paddle import nn

from erniekit.losses.cross_entropy import Head
from erniekit.models.ernie45.config import Ernie45Config
from erniekit.models.ernie45.moe_config import Ernie45MoeConfig
from erniekit.nn.attention import Attention
from erniekit.nn.cache import KVCache
from erniekit.nn.embedding import Embedding
from erniekit.nn.linear import Linear
from erniekit.nn.mlp import GatedMLP
from erniekit.nn.moe import MixtureOfExperts, RouterRecord
from erniekit.nn.norm import RMSNorm
from erniekit.ops import backend
from erniekit.ops.attention import Visibility, visibility
from erniekit.ops.concat import concat
from erniekit.ops.dropout import dropout
from erniekit.ops.rope import rotations

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class Ernie45(nn.Layer):
    """The model; `forward` gives hidden states, `head()` and `logits` what comes after them."""

    def __init__(self, config: Ernie45Config, *, dtype: str = "fp32") -> None:
        """Build with zero weights; `dtype` is `fp32` or `bf16`."""
        super().__init__()
        self.config = config
        self.cache_dtype = DTYPES[dtype]
        # Set it to a list, and every router adds what it does with the tokens of a forward pass.
        self.router_records: list[RouterRecord] | None = None
        self.model = _Decoder(config, dtype=DTYPES[dtype])
        self.lm_head: Linear | _HeadBias | None = None
        # With use_bias the output layer of a mixture of experts has a bias too; a dense model's has none.
        bias = config.use_bias and isinstance(config, Ernie45MoeConfig)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=bias, dtype=DTYPES[dtype])
        elif bias:
            self.lm_head = _HeadBias(config.vocab_size, dtype=DTYPES[dtype])

    def forward(
        self,
        input_ids_BT: paddle.Tensor,
        position_ids_BT: paddle.Tensor,
        attend_from_BT: paddle.Tensor,
        cache: KVCache | None = None,
        token_type_ids_BT: paddle.Tensor | None = None,
    ) -> paddle.Tensor:
        """Hidden states [B, T, H] after the last norm.

        Args:
            input_ids_BT: int64 token ids.
            position_ids_BT: int64 positions, counted from 0 in every sample.
            attend_from_BT: int32, the first column that each column may see (see `ops/attention.py`).
            cache: keys and values of earlier columns, extended by these.
            token_type_ids_BT: int64, 0 for text and anything else for vision, in a model that has
                experts for both; without them all tokens are text.
        """
        self._check_types(token_type_ids_BT)
        return self.model(
            input_ids_BT, position_ids_BT, attend_from_BT, cache, token_type_ids_BT, self.router_records
        )[0]

    def predict_ahead(
        self,
        input_ids_BT: paddle.Tensor,
        position_ids_BT: paddle.Tensor,
        attend_from_BT: paddle.Tensor,
        token_type_ids_BT: paddle.Tensor | None = None,
    ) -> tuple[paddle.Tensor, list[paddle.Tensor]]:
        """Hidden states as of `forward`, and those of each block of multi-token prediction, all [B, T, H].

        `logits` of the first of the list, at position t, are of the token at t + 2, of the next one of
        t + 3. Where that lies beyond the sample or the row, they mean nothing: no label may stand there.
        """
        self._check_types(token_type_ids_BT)
        hidden, ahead = self.model(
            *(input_ids_BT, position_ids_BT, attend_from_BT, None, token_type_ids_BT, self.router_records),
            ahead=True,
        )
        return hidden, ahead

    def _check_types(self, token_type_ids_BT: paddle.Tensor | None) -> None:
        known = getattr(self.config, "num_modalities", 1) == 2
        assert token_type_ids_BT is None or known, "token types for a model of text alone"

    def head(self) -> Head:
        """The output layer, for losses that compute logits in chunks."""
        bias = self.lm_head.bias if self.lm_head is not None else None
        if isinstance(self.lm_head, Linear):
            return Head(self.lm_head.whole_weight(), transposed=False, bias=bias)
        return Head(self.model.embed_tokens.weight, transposed=True, bias=bias)

    def logits(self, hidden_NH: paddle.Tensor) -> paddle.Tensor:
        """Logits [N, V] in fp32 of hidden states."""
        return self.head().logits(hidden_NH)

    def set_dropout(self, hidden: float, attention: float) -> None:
        """Set the dropout probabilities; they act in training mode only."""
        for layer in (*self.model.layers, *self.model.mtp_block):
            layer.hidden_dropout = hidden
            layer.self_attn.dropout = attention

    def set_num_ahead(self, number: int) -> list[str]:
        """Have this number of blocks of multi-token prediction: the last ones go, or fresh ones are added.

        Returns:
            The names of the parameters that are new; they have fresh weights.
        """
        before = set(self.state_dict())
        self.config = self.config.with_ahead(number)
        self.model.set_num_ahead(self.config, dtype=self.cache_dtype)
        added = {name for name in self.state_dict() if name not in before}
        self.initialise_weights(added)
        return sorted(added)

    def initialise_weights(
        self,
        only: Collection[str] | None = None,
        *,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        placements: Mapping[str, Any] | None = None,
    ) -> None:
        """Fresh weights, drawn from Paddle's generator (seed it first): all initialisation is here.

        Where processes share the model, each draws the whole one, a matrix at a time, and keeps its part.

        Args:
            only: names of the parameters that get them; all without.
            shapes: of all parameters of the whole model, in its order.
            placements: what is here of each (`parallel/placement.py`).

        | parameter                     | value                                    |
        |-------------------------------|------------------------------------------|
        | matrices, embedding, experts  | normal, standard deviation initial_std() |
        | norms                         | 1                                        |
        | biases, correction of routers | 0                                        |
        """
        std, own = self.config.initial_std(), dict(self.named_parameters())
        for name, shape in (shapes or {name: tuple(p.shape) for name, p in own.items()}).items():
            if (only is not None and name not in only) or len(shape) < 2:
                continue
            if name.endswith("e_score_correction_bias"):
                continue
            *experts, rows, columns = shape
            matrices = (paddle.normal(0.0, std, [rows, columns]) for _ in range(*(experts or [1])))
            if name not in own:
                for _ in matrices:  # drawn all the same: the next ones follow
                    pass
                continue
            parameter = own[name]
            if placements is None:
                drawn = paddle.stack([matrix.astype(parameter.dtype) for matrix in matrices])
                parameter.set_value(drawn.reshape(parameter.shape))
                continue
            arrays = (matrix.numpy() for matrix in matrices)
            held = placements[name]
            part = held.take_matrices(arrays) if experts else held.take(next(arrays))
            parameter.set_value(paddle.to_tensor(part).astype(parameter.dtype))


class _Decoder(nn.Layer):
    def __init__(self, config: Ernie45Config, *, dtype: str) -> None:
        super().__init__()
        self.head_dim, self.rope_theta = config.head_dim, config.rope_theta
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        self.layers = nn.LayerList(
            [_Block(config, layer, dtype=dtype) for layer in range(config.num_hidden_layers)]
        )
        self.norm = RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps, dtype=dtype)
        # Multi-token prediction.
        self.mtp_block, self.mtp_emb_norm = nn.LayerList(), nn.LayerList()
        self.mtp_hidden_norm, self.mtp_linear_proj = nn.LayerList(), nn.LayerList()
        self.set_num_ahead(config, dtype=dtype)

    def set_num_ahead(self, config: Ernie45Config, *, dtype: str) -> None:
        """Have as many blocks of multi-token prediction as the config says; new ones have zero weights."""
        hidden, epsilon, number = config.hidden_size, config.rms_norm_eps, config.num_nextn_predict_layers
        for name in ("mtp_block", "mtp_emb_norm", "mtp_hidden_norm", "mtp_linear_proj"):
            setattr(self, name, nn.LayerList(list(getattr(self, name))[:number]))
        while len(self.mtp_block) < number:
            # They are of the kind of layer 0, whatever comes before them.
            self.mtp_block.append(_Block(config, 0, dtype=dtype))
            self.mtp_emb_norm.append(RMSNorm(hidden, epsilon=epsilon, dtype=dtype))
            self.mtp_hidden_norm.append(RMSNorm(hidden, epsilon=epsilon, dtype=dtype))
            self.mtp_linear_proj.append(Linear(2 * hidden, hidden, bias=config.use_bias, dtype=dtype))

    def forward(
        self,
        input_ids_BT: paddle.Tensor,
        position_ids_BT: paddle.Tensor,
        attend_from_BT: paddle.Tensor,
        cache: KVCache | None,
        token_types_BT: paddle.Tensor | None,
        records: list[RouterRecord] | None,
        *,
        ahead: bool = False,
    ) -> tuple[paddle.Tensor, list[paddle.Tensor]]:
        num_past = cache.length if cache is not None else 0
        running = backend.current_backend()
        visible = visibility(attend_from_BT, num_past=num_past, backend=running)
        attention = next(iter(self.layers)).self_attn
        num_turned = attention.num_heads + attention.num_kv_heads
        copies = 1 if running == "native" and cache is None else num_turned
        turns = rotations(position_ids_BT, self.head_dim, self.rope_theta, num_heads=copies)
        stream, delta = self.embed_tokens(input_ids_BT), None
        for index, block in enumerate(self.layers):
            stream, delta = block(stream, delta, turns, visible, cache, index, token_types_BT, records)
        if cache is not None:
            cache.advance(input_ids_BT.shape[1])
        stream, hidden = self.norm(stream, delta)
        hiddens_ahead: list[paddle.Tensor] = []
        next_ids_BT = input_ids_BT
        for depth, block in enumerate(self.mtp_block if ahead else ()):
            # Beyond the row there is no token; position T - 1 is seen by no other one.
            next_ids_BT = paddle.concat([next_ids_BT[:, 1:], paddle.zeros_like(next_ids_BT[:, :1])], axis=1)
            tokens = self.mtp_emb_norm[depth](self.embed_tokens(next_ids_BT))[1]
            before = self.mtp_hidden_norm[depth](stream)[1]
            joined = self.mtp_linear_proj[depth](concat([tokens, before], axis=-1))
            index = len(self.layers) + depth
            stream, delta = block(joined, None, turns, visible, None, index, token_types_BT, records)
            stream, hidden_ahead = self.norm(stream, delta)
            hiddens_ahead.append(hidden_ahead)
        return hidden, hiddens_ahead


class _HeadBias(nn.Layer):
    """What an output layer holds whose matrix is the embedding table."""

    def __init__(self, vocab_size: int, *, dtype: str) -> None:
        super().__init__(dtype=dtype)
        self.bias = self.create_parameter([vocab_size], dtype=dtype, is_bias=True)


class _Block(nn.Layer):
    def __init__(self, config: Ernie45Config, layer: int, *, dtype: str) -> None:
        super().__init__()
        self.hidden_dropout = 0.0
        hidden, epsilon, bias = config.hidden_size, config.rms_norm_eps, config.use_bias
        self.input_layernorm = RMSNorm(hidden, epsilon=epsilon, dtype=dtype)
        self.self_attn = Attention(
            hidden,
            config.num_attention_heads,
            config.num_key_value_heads,
            head_dim=config.head_dim,
            bias=bias,
            dtype=dtype,
        )
        self.post_attention_layernorm = RMSNorm(hidden, epsilon=epsilon, dtype=dtype)
        self.mlp: GatedMLP | MixtureOfExperts
        if config.is_moe_layer(layer):
            assert isinstance(config, Ernie45MoeConfig)
            self.mlp = _experts(config, dtype=dtype)
        else:
            self.mlp = GatedMLP(hidden, config.intermediate_size, bias=bias, dtype=dtype)

    def forward(
        self,
        stream: paddle.Tensor,
        delta: paddle.Tensor | None,
        turns: paddle.Tensor,
        visible: Visibility,
        cache: KVCache | None,
        index: int,
        token_types_BT: paddle.Tensor | None,
        records: list[RouterRecord] | None,
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        stream, normed = self.input_layernorm(stream, delta)
        attended = self.self_attn(normed, turns, visible, cache, index)
        attended = dropout(attended, self.hidden_dropout, training=self.training)
        stream, normed = self.post_attention_layernorm(stream, attended)
        if isinstance(self.mlp, MixtureOfExperts):
            widened = self.mlp(normed, token_types_BT, records, index)
        else:
            widened = self.mlp(normed)
        return stream, dropout(widened, self.hidden_dropout, training=self.training)


def _experts(config: Ernie45MoeConfig, *, dtype: str) -> MixtureOfExperts:
    return MixtureOfExperts(
        config.hidden_size,
        config.moe_num_experts,
        config.moe_intermediate_size,
        top_k=config.moe_k,
        shared_intermediate_size=config.shared_intermediate_size(),
        bias=config.use_bias,
        dtype=dtype,
        scoring=config.scoring_func,
        norm_min=config.moe_norm_min,
        normalise=config.moe_norm_gate_logits,
        grouped=config.moe_group_experts,
        capacity=config.moe_capacity,
    )
