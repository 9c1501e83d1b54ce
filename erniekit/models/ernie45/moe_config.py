"""The numbers of an ERNIE 4.5 mixture of experts: the text models, and the text side of the multimodal ones.

A multimodal model has two of some numbers, for text and for vision tokens: Baidu writes lists of two,
transformers 5 nests them in `text_config` and lists the kind of every layer (`mlp_layer_types`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from erniekit.data.vision_tokens import IMAGE, VIDEO, VisionTokens
from erniekit.errors import CheckpointError, UnsupportedError
from erniekit.models.ernie45.config import Ernie45Config

TEXT_TYPE, TEXT_ARCHITECTURE = "ernie4_5_moe", "Ernie4_5_MoeForCausalLM"
VISION_TYPE, VISION_ARCHITECTURE = "ernie4_5_moe_vl", "Ernie4_5_VLMoeForConditionalGeneration"
_LISTS = ("moe_num_experts", "moe_intermediate_size", "moe_layer_start_index", "moe_layer_end_index")
SCORES = ("softmax", "sigmoid")
# Ids of vision tokens: type, and what a config.json that does not say means (Baidu's names the first only).
_VISION_IDS = {
    "im_patch_id": (IMAGE, 100295),
    "image_start_token_id": (IMAGE, 101304),
    "image_end_token_id": (IMAGE, 101305),
    "video_start_token_id": (VIDEO, 101306),
    "video_end_token_id": (VIDEO, 101307),
    "video_token_id": (VIDEO, 103367),
}
_PLACEHOLDERS = ("im_patch_id", "video_token_id")


@dataclass(frozen=True, kw_only=True)
class Ernie45MoeConfig(Ernie45Config):
    """Names as in config.json; what may differ between modalities is a tuple (text) or (text, vision).

    A layer i holds experts iff (i + 1) is a multiple of moe_layer_interval and
    min(moe_layer_start_index) <= i <= max(moe_layer_end_index), where -1 is the last layer.
    Without moe_capacity (in training, in evaluation, with fewer tokens than experts) no expert is full.
    """

    may_be_zero: ClassVar[tuple[str, ...]] = ("moe_num_shared_experts", "num_nextn_predict_layers")

    moe_num_experts: tuple[int, ...] = (64,)
    moe_intermediate_size: tuple[int, ...] = (1536,)
    moe_k: int = 6
    moe_num_shared_experts: int = 2
    moe_layer_start_index: tuple[int, ...] = (1,)
    moe_layer_end_index: tuple[int, ...] = (-1,)
    moe_layer_interval: int = 1
    moe_norm_min: float = 1e-12
    moe_norm_gate_logits: bool = True
    moe_group_experts: bool = False
    moe_capacity: tuple[float, float, float] | None = None
    scoring_func: str = "softmax"
    num_nextn_predict_layers: int = 0  # type: ignore[misc]  # a field here, a constant of dense models
    # Vision tokens, of models for two modalities; None for a token that the vocabulary does not have.
    im_patch_id: int | None = None
    image_start_token_id: int | None = None
    image_end_token_id: int | None = None
    video_start_token_id: int | None = None
    video_end_token_id: int | None = None
    video_token_id: int | None = None
    # Whether the model was made for a vision tower: its config.json describes one.
    has_tower: bool = False

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, source: str = "config.json") -> "Ernie45MoeConfig":
        """Read a parsed config.json in any of its forms; raises as `Ernie45Config.from_json`."""
        flat = {**content, **(content.get("text_config") or {})}
        layers = flat.get("mlp_layer_types")
        if layers is not None:
            flat |= _rule_of(layers, source)
        for name in _LISTS:
            if flat.get(name) is not None:
                flat[name] = _tuple(name, flat[name], source)
        # transformers 5 gives one number of experts for both modalities.
        widths = flat.get("moe_intermediate_size", ())
        if len(widths) == 2 and len(flat.get("moe_num_experts", (64,))) == 1:
            flat["moe_num_experts"] = 2 * flat.get("moe_num_experts", (64,))
        if flat.get("moe_capacity") is not None:
            flat["moe_capacity"] = _capacity(flat["moe_capacity"], source)
        flat["has_tower"] = bool(flat.get("vision_config"))
        flat |= _vision_ids(flat, source)
        config = super().from_json(flat, source=source)
        assert isinstance(config, cls)
        return config

    @property
    def num_modalities(self) -> int:
        """1, or 2 with experts of their own for vision tokens."""
        return len(self.moe_num_experts)

    def vision_tokens(self) -> VisionTokens:
        """The tokens that go to the experts of vision."""
        ids = {name: getattr(self, name) for name in _VISION_IDS}
        types = {ids[name]: kind for name, (kind, _) in _VISION_IDS.items() if ids[name] is not None}
        placeholders = frozenset(ids[name] for name in _PLACEHOLDERS if ids[name] is not None)
        return VisionTokens(types, placeholders, self.has_tower)

    def is_moe_layer(self, layer: int) -> bool:
        """Whether a layer holds experts; see the class."""
        ends = [end if end >= 0 else self.num_hidden_layers - 1 for end in self.moe_layer_end_index]
        within = min(self.moe_layer_start_index) <= layer <= max(ends)
        return within and (layer + 1) % self.moe_layer_interval == 0

    def shared_intermediate_size(self) -> int:
        """Width of the one MLP that the shared experts are."""
        return self.moe_num_shared_experts * self.moe_intermediate_size[0]

    def parameters_by_part(self) -> dict[str, int]:
        """Number of parameters of each part, correction biases (which are not trained) among the routers."""
        parts = super().parameters_by_part()
        hidden, bias = self.hidden_size, int(self.use_bias)
        mlp = parts["mlp"] // self.num_hidden_layers
        moe, shared = self._num_moe_layers(), self.shared_intermediate_size()
        experts = [3 * hidden * width * n for n, width in self._experts()]
        parts["mlp"] = (self.num_hidden_layers - moe) * mlp
        routers = hidden * sum(self.moe_num_experts) + self.num_modalities * max(self.moe_num_experts)
        ahead = 2 * hidden * hidden + 4 * hidden + bias * hidden
        ahead += parts["attention"] // self.num_hidden_layers
        ahead += self._one_moe_layer() if self.is_moe_layer(0) else mlp
        middle = {
            "router": moe * routers,
            "experts": moe * experts[0],
            "vision experts": moe * sum(experts[1:]),
            "shared experts": moe * (3 * hidden * shared + bias * (2 * shared + hidden) * (shared > 0)),
        }
        parts["head"] += bias * self.vocab_size
        order = ("embedding", "attention", "mlp")
        return (
            {part: parts[part] for part in order}
            | middle
            | {"norms": parts["norms"], "head": parts["head"]}
            | {"multi-token prediction": self.num_nextn_predict_layers * ahead}
        )

    def num_active_parameters(self, modality: int = 0) -> int:
        """Number of parameters that work on one token of a modality, multi-token prediction left out."""
        parts, moe, hidden = self.parameters_by_part(), self._num_moe_layers(), self.hidden_size
        number, width = self._experts()[modality]
        own = moe * (3 * hidden * width * self.moe_k + hidden * number + number)
        of_all = ("embedding", "attention", "mlp", "shared experts", "norms", "head")
        return own + sum(parts[part] for part in of_all)

    def product_weights(self) -> int:
        """Weights of the blocks that one text token is multiplied with."""
        parts = self.parameters_by_part()
        moe, hidden = self._num_moe_layers(), self.hidden_size
        chosen = moe * self.moe_k * 3 * hidden * self.moe_intermediate_size[0]
        router = moe * hidden * self.moe_num_experts[0]
        return parts["attention"] + parts["mlp"] + parts["shared experts"] + chosen + router

    def ahead_weights(self) -> int:
        """See `Ernie45Config.ahead_weights`; the blocks are of the kind of layer 0."""
        hidden, parts = self.hidden_size, self.parameters_by_part()
        block = parts["attention"] // self.num_hidden_layers
        if self.is_moe_layer(0):
            widths = self.moe_k * self.moe_intermediate_size[0] + self.shared_intermediate_size()
            block += hidden * self.moe_num_experts[0] + 3 * hidden * widths
        else:
            block += 3 * hidden * self.intermediate_size
        return self.num_nextn_predict_layers * (block + 2 * hidden * hidden + self.vocab_size * hidden)

    def with_ahead(self, number: int) -> "Ernie45MoeConfig":
        """See `Ernie45Config.with_ahead`."""
        return replace(self, num_nextn_predict_layers=number)

    def _experts(self) -> list[tuple[int, int]]:
        """Number and width of the experts of each modality."""
        return list(zip(self.moe_num_experts, self.moe_intermediate_size, strict=True))

    def _num_moe_layers(self) -> int:
        return sum(map(self.is_moe_layer, range(self.num_hidden_layers)))

    def _one_moe_layer(self) -> int:
        hidden, shared = self.hidden_size, self.shared_intermediate_size()
        total = sum(3 * hidden * width * n + hidden * n for n, width in self._experts()) + 3 * hidden * shared
        total += self.num_modalities * max(self.moe_num_experts)
        return total + (2 * shared + hidden if self.use_bias and shared else 0)

    def to_json(self, *, dtype: str = "float32") -> dict[str, Any]:
        """The content of config.json, in Baidu's form; see `Ernie45Config.to_json`."""
        content = super().to_json(dtype=dtype)
        if self.num_modalities == 1:
            for name in _LISTS:
                content[name] = content[name][0] if len(content[name]) == 1 else content[name]
        else:
            content |= {"moe_use_hard_gate": True, "rope_3d": True, "image_token_id": self.im_patch_id}
        for name in ("has_tower", *(_VISION_IDS if self.num_modalities == 1 else ())):
            del content[name]
        if self.moe_capacity is None:
            del content["moe_capacity"]
        return content

    def _architecture(self) -> str:
        return TEXT_ARCHITECTURE if self.num_modalities == 1 else VISION_ARCHITECTURE

    def _model_type(self) -> str:
        return TEXT_TYPE if self.num_modalities == 1 else VISION_TYPE

    @classmethod
    def _refuse(cls, content: Mapping[str, Any], source: str) -> None:
        if (
            len(content.get("moe_num_experts", ())) == 2
            and content.get("moe_use_hard_gate", True) is not True
        ):
            raise UnsupportedError(
                f"{source}: moe_use_hard_gate is {content['moe_use_hard_gate']!r}: one router over experts "
                "of text and vision is not built; with true every token has the experts of its modality"
            )

    def _check(self, source: str) -> None:
        super()._check(source)
        sizes = len(self.moe_num_experts), len(self.moe_intermediate_size)
        if sizes not in ((1, 1), (2, 2)):
            raise CheckpointError(
                f"{source}: moe_num_experts {list(self.moe_num_experts)} and moe_intermediate_size "
                f"{list(self.moe_intermediate_size)}: each must have one number, or two (text, vision)"
            )
        if self.moe_k > min(self.moe_num_experts):
            raise CheckpointError(
                f"{source}: moe_k {self.moe_k} is more than moe_num_experts {list(self.moe_num_experts)}"
            )
        if self.moe_group_experts and any(n % self.moe_k for n in self.moe_num_experts):
            raise CheckpointError(
                f"{source}: moe_group_experts makes moe_k {self.moe_k} groups of equal size, which "
                f"moe_num_experts {list(self.moe_num_experts)} does not divide into"
            )
        if self.scoring_func not in SCORES:
            raise UnsupportedError(
                f"{source}: scoring_func {self.scoring_func!r} is not built; {' and '.join(SCORES)} are"
            )
        if not self._num_moe_layers():
            raise CheckpointError(
                f"{source}: no layer holds experts: moe_layer_start_index "
                f"{list(self.moe_layer_start_index)}, moe_layer_end_index {list(self.moe_layer_end_index)} "
                f"and moe_layer_interval {self.moe_layer_interval} of {self.num_hidden_layers} layers"
            )


def _rule_of(kinds: Any, source: str) -> dict[str, Any]:
    """Start and end index of a list of `dense` and `sparse`, a word for each layer."""
    sparse = [index for index, kind in enumerate(kinds) if kind == "sparse"]
    if not sparse or sparse != list(range(sparse[0], sparse[-1] + 1)):
        raise UnsupportedError(
            f"{source}: mlp_layer_types {kinds}: layers with experts must follow each other"
        )
    return {"moe_layer_start_index": sparse[0], "moe_layer_end_index": sparse[-1], "moe_layer_interval": 1}


def _vision_ids(flat: Mapping[str, Any], source: str) -> dict[str, int | None]:
    """The ids of vision tokens, for two modalities; transformers calls `im_patch_id` image_token_id."""
    if len(flat.get("moe_num_experts", ())) != 2:
        return dict.fromkeys(_VISION_IDS)
    found: dict[str, int | None] = {}
    size = flat.get("vocab_size", 0)
    for name, (_, default) in _VISION_IDS.items():
        given = flat.get("image_token_id", default) if name == "im_patch_id" else default
        value = flat.get(name, given)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise CheckpointError(f"{source}: {name} is {value!r}; it must be a token id, or null for none")
        found[name] = value if value is None or value < size else None
    return found


def _tuple(name: str, value: Any, source: str) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    least = {"moe_layer_start_index": 0, "moe_layer_end_index": -1}.get(name, 1)
    for number in values:
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise CheckpointError(
                f"{source}: {name} is {value!r}; it must be a whole number of at least {least}, or a list "
                "of two of them (text, vision)"
            )
    return values


def _capacity(value: Any, source: str) -> tuple[float, float, float]:
    numbers = list(value) if isinstance(value, (list, tuple)) else []
    if len(numbers) != 3 or not all(isinstance(n, (int, float)) and n > 0 for n in numbers):
        raise CheckpointError(
            f"{source}: moe_capacity is {value!r}; it must be three numbers above 0: in training, in "
            "evaluation, and with fewer tokens than experts"
        )
    training, evaluation, few = numbers
    return training, evaluation, few
