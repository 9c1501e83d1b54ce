"""The ERNIE 4.5 dense decoder: architecture only.

Pre-norm blocks, x += Attention(RMSNorm(x)); x += MLP(RMSNorm(x)), a last RMSNorm, and an output
layer that is the embedding table when tied. A block hands on the stream and what is yet to be added
to it, since the next norm adds and normalises in one pass over memory. Precision, adapters,
distribution and recomputation are applied from outside.

    B batch, T positions, H hidden size, N rows of hidden states, V vocabulary
"""

import paddle
from paddle import nn

from erniekit.losses.cross_entropy import Head
from erniekit.models.ernie45.config import Ernie45Config
from erniekit.nn.attention import Attention
from erniekit.nn.cache import KVCache
from erniekit.nn.embedding import Embedding
from erniekit.nn.linear import Linear
from erniekit.nn.mlp import GatedMLP
from erniekit.nn.norm import RMSNorm
from erniekit.ops import backend
from erniekit.ops.attention import Visibility, visibility
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
        self.model = _Decoder(config, dtype=DTYPES[dtype])
        self.lm_head: Linear | None = None
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False, dtype=DTYPES[dtype])

    def forward(
        self,
        input_ids_BT: paddle.Tensor,
        position_ids_BT: paddle.Tensor,
        attend_from_BT: paddle.Tensor,
        cache: KVCache | None = None,
    ) -> paddle.Tensor:
        """Hidden states [B, T, H] after the last norm.

        Args:
            input_ids_BT: int64 token ids.
            position_ids_BT: int64 positions, counted from 0 in every sample.
            attend_from_BT: int32, the first column that each column may see (see `ops/attention.py`).
            cache: keys and values of earlier columns, extended by these.
        """
        return self.model(input_ids_BT, position_ids_BT, attend_from_BT, cache)

    def head(self) -> Head:
        """The output layer, for losses that compute logits in chunks."""
        if self.lm_head is None:
            return Head(self.model.embed_tokens.weight, transposed=True)
        return Head(self.lm_head.weight, transposed=False)

    def logits(self, hidden_NH: paddle.Tensor) -> paddle.Tensor:
        """Logits [N, V] in fp32 of hidden states."""
        return self.head().logits(hidden_NH)

    def set_dropout(self, hidden: float, attention: float) -> None:
        """Set the dropout probabilities; they act in training mode only."""
        for layer in self.model.layers:
            layer.hidden_dropout = hidden
            layer.self_attn.dropout = attention

    def initialise_weights(self) -> None:
        """Fresh weights, drawn from Paddle's generator (seed it first): all initialisation is here.

        | parameter            | value                                   |
        |----------------------|-----------------------------------------|
        | matrices, embedding  | normal, standard deviation initial_std() |
        | norms                | 1                                       |
        | biases               | 0                                       |
        """
        std = self.config.initial_std()
        for _, parameter in self.named_parameters():
            if len(parameter.shape) == 2:
                drawn = paddle.normal(0.0, std, parameter.shape)
                parameter.set_value(drawn.astype(parameter.dtype))


class _Decoder(nn.Layer):
    def __init__(self, config: Ernie45Config, *, dtype: str) -> None:
        super().__init__()
        self.head_dim, self.rope_theta = config.head_dim, config.rope_theta
        self.num_turned_heads = config.num_attention_heads + config.num_key_value_heads
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        self.layers = nn.LayerList([_Block(config, dtype=dtype) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps, dtype=dtype)

    def forward(
        self,
        input_ids_BT: paddle.Tensor,
        position_ids_BT: paddle.Tensor,
        attend_from_BT: paddle.Tensor,
        cache: KVCache | None,
    ) -> paddle.Tensor:
        num_past = cache.length if cache is not None else 0
        running = backend.current_backend()
        visible = visibility(attend_from_BT, num_past=num_past, backend=running)
        copies = 1 if running == "native" and cache is None else self.num_turned_heads
        turns = rotations(position_ids_BT, self.head_dim, self.rope_theta, num_heads=copies)
        stream, delta = self.embed_tokens(input_ids_BT), None
        for index, block in enumerate(self.layers):
            stream, delta = block(stream, delta, turns, visible, cache, index)
        if cache is not None:
            cache.advance(input_ids_BT.shape[1])
        return self.norm(stream, delta)[1]


class _Block(nn.Layer):
    def __init__(self, config: Ernie45Config, *, dtype: str) -> None:
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
        self.mlp = GatedMLP(hidden, config.intermediate_size, bias=bias, dtype=dtype)

    def forward(
        self,
        stream: paddle.Tensor,
        delta: paddle.Tensor | None,
        turns: paddle.Tensor,
        visible: Visibility,
        cache: KVCache | None,
        index: int,
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        stream, normed = self.input_layernorm(stream, delta)
        attended = self.self_attn(normed, turns, visible, cache, index)
        attended = dropout(attended, self.hidden_dropout, training=self.training)
        stream, normed = self.post_attention_layernorm(stream, attended)
        return stream, dropout(self.mlp(normed), self.hidden_dropout, training=self.training)
