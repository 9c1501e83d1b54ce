"""The numbers of an ERNIE 4.5 dense model, read from and written to every form of config.json.

Three forms are in use: Baidu's (flat `rope_theta`, sometimes without `head_dim`), transformers 4
(the same plus `rope_scaling: null`), and transformers 5 (`rope_parameters`). All are read; what
is written carries both spellings of the rotary base, so that each of them reads it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from erniekit.data.vision_tokens import VisionTokens
from erniekit.errors import CheckpointError, UnsupportedError

MODEL_TYPE = "ernie4_5"
ARCHITECTURE = "Ernie4_5ForCausalLM"
# Keys of a config.json that speak of the folder it stands in, or say otherwise what is written flat.
_NOT_KEPT = (
    "transformers_version",
    "paddleformers_version",
    "auto_map",
    "_name_or_path",
    "quantization_config",
    "text_config",
    "mlp_layer_types",
)


@dataclass(frozen=True, kw_only=True)
class Ernie45Config:
    """Names as in config.json."""

    # Counts that may be 0.
    may_be_zero: ClassVar[tuple[str, ...]] = ()
    # No multi-token prediction in the dense models.
    num_nextn_predict_layers: ClassVar[int] = 0

    vocab_size: int = 103424
    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 18
    num_attention_heads: int = 16
    num_key_value_heads: int = 2
    head_dim: int = 128
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    tie_word_embeddings: bool = True
    use_bias: bool = False
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    # What else a config.json says: nothing is computed from it, and it is written again.
    others: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, source: str = "config.json") -> "Ernie45Config":
        """Read a parsed config.json.

        Raises:
            UnsupportedError: it describes a variant that is not built (MoE, other activations, ...).
            CheckpointError: a number is missing, of the wrong type, or does not fit the others.
        """
        _refuse_variants(content, source)
        cls._refuse(content, source)
        names = [each.name for each in fields(cls) if each.name != "others"]
        values: dict[str, Any] = {}
        for name in names:
            if name in content and (content[name] is not None or name.endswith("_id")):
                values[name] = content[name]
        known = {*names, *_NOT_KEPT}
        values["others"] = {key: value for key, value in content.items() if key not in known}
        rope = content.get("rope_parameters") or {}
        if "rope_theta" in rope:
            values["rope_theta"] = rope["rope_theta"]
        for key in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        ):
            if key not in values:
                raise CheckpointError(f"{source}: {key} is missing")
            _check_count(key, values[key], source)  # before others are computed from it
        if isinstance(values.get("eos_token_id"), list):
            values["eos_token_id"] = tuple(values["eos_token_id"])
        if "num_key_value_heads" not in values:
            values["num_key_value_heads"] = values["num_attention_heads"]
        if "head_dim" not in values:
            values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
        config = cls(**values)
        config._check(source)
        return config

    def to_json(self, *, dtype: str = "float32") -> dict[str, Any]:
        """The content of config.json; `dtype` is the word for the type of the weights beside it."""
        content: dict[str, Any] = {"architectures": [self._architecture()], "model_type": self._model_type()}
        for each in fields(self):
            value = getattr(self, each.name)
            content[each.name] = list(value) if isinstance(value, tuple) else value
        return {**content.pop("others"), **content} | {
            "hidden_act": "silu",
            "rope_scaling": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "torch_dtype": dtype,
            "dtype": dtype,
            "use_cache": True,
        }

    def parameters_by_part(self) -> dict[str, int]:
        """Number of parameters of each part of the model."""
        hidden, inner = self.hidden_size, self.intermediate_size
        query, key = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = hidden * (query + 2 * key) + query * hidden
        mlp = 3 * hidden * inner
        if self.use_bias:
            attention += query + 2 * key + hidden
            mlp += 2 * inner + hidden
        return {
            "embedding": self.vocab_size * hidden,
            "attention": self.num_hidden_layers * attention,
            "mlp": self.num_hidden_layers * mlp,
            "norms": (2 * self.num_hidden_layers + 1) * hidden,
            "head": 0 if self.tie_word_embeddings else self.vocab_size * hidden,
        }

    def num_parameters(self) -> int:
        """Number of parameters, tied weights counted once."""
        return sum(self.parameters_by_part().values())

    def num_active_parameters(self) -> int:
        """Number of parameters that work on one token: all of them in a dense model."""
        return self.num_parameters()

    def product_weights(self) -> int:
        """Weights of the blocks that one token is multiplied with."""
        parts = self.parameters_by_part()
        return parts["attention"] + parts["mlp"]

    def ahead_weights(self) -> int:
        """Weights of multi-token prediction that one token is multiplied with, its heads included."""
        return 0

    def is_moe_layer(self, layer: int) -> bool:
        """Whether a layer holds experts instead of an MLP: none of a dense model does."""
        return False

    def vision_tokens(self) -> VisionTokens:
        """The tokens that are no text; a dense model has none."""
        return VisionTokens()

    def with_ahead(self, number: int) -> "Ernie45Config":
        """The same with this number of blocks of multi-token prediction.

        Raises:
            UnsupportedError: the model is dense, and these have none.
        """
        if number:
            raise UnsupportedError(
                f"num_nextn_predict_layers: {number}: multi-token prediction is of mixtures of experts, "
                "and this model is dense; write 0, or leave the key out"
            )
        return self

    def flops_per_token(self, seq_len: int) -> float:
        """FLOPs of one forward pass per token, in a causal sequence of `seq_len` (mean over positions).

        A product of [m, k] and [k, n] counts 2mkn; norms, rotations and softmax are left out.
        """
        products = self.product_weights() + self.vocab_size * self.hidden_size
        attended = (seq_len + 1) / 2
        scores = 2 * self.num_hidden_layers * self.num_attention_heads * self.head_dim * attended
        return 2.0 * (products + scores)

    def initial_std(self) -> float:
        """Standard deviation of fresh weights: sqrt(1 / (3 hidden_size)), as ERNIE 4.5's own code sets it."""
        return math.sqrt(0.3333 / self.hidden_size)

    def _architecture(self) -> str:
        return ARCHITECTURE

    def _model_type(self) -> str:
        return MODEL_TYPE

    @classmethod
    def _refuse(cls, content: Mapping[str, Any], source: str) -> None:
        """Raise for a model that is of another kind than this class."""
        if content.get("moe_num_experts"):
            raise UnsupportedError(
                f"{source}: a dense model with moe_num_experts {content['moe_num_experts']}; the model_type "
                "of a mixture of experts is ernie4_5_moe"
            )

    def _check(self, source: str) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type is int:
                _check_count(each.name, value, source, least=0 if each.name in self.may_be_zero else 1)
            if each.type is bool and not isinstance(value, bool):
                raise CheckpointError(f"{source}: {each.name} is {value!r}; it must be true or false")
            if each.type is float and (
                isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0
            ):
                raise CheckpointError(f"{source}: {each.name} is {value!r}; it must be a number above 0")
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"{source}: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise CheckpointError(f"{source}: head_dim {self.head_dim} is odd; rotary positions need pairs")


def _check_count(name: str, value: Any, source: str, *, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        wanted = "above 0" if least == 1 else f"of at least {least}"
        raise CheckpointError(f"{source}: {name} is {value!r}; it must be a whole number {wanted}")


def _refuse_variants(content: Mapping[str, Any], source: str) -> None:
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UnsupportedError(f"{source}: rope_type {kind!r} is not built yet; only 'default' is")
    if content.get("hidden_act", "silu") != "silu":
        raise UnsupportedError(
            f"{source}: hidden_act {content['hidden_act']!r} is not built; ERNIE 4.5 uses 'silu'"
        )
