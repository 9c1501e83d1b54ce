"""What of a model is recomputed, layer by layer: the keys' meaning, without Paddle.

| granularity | recomputed of a layer |
|---|---|
| full | everything: only its input is kept |
| full_attn | attention with its projections |
| core_attn | rotation, scores, softmax and weighted sum |
| selective | the operators of `refined_recompute` |
"""

from dataclasses import dataclass

from erniekit.errors import ConfigError

# Cheap to compute again beside what they hold; `selective` without a list.
CHEAP = ("norm", "rope", "core_attention", "router", "dispatch", "activation")
# Not below a block: `head` is the objective's, `mtp` are blocks of their own.
OUTSIDE = ("head", "mtp")


@dataclass(frozen=True)
class Recomputation:
    """What is recomputed, layer by layer.

    operators: for every block the operators of it, `("block",)` for all of it, `()` for nothing.
    mtp: whether the blocks of multi-token prediction are, as a whole; head: whether head and loss are.
    named: operators that were asked for by name, so that one which the model does not have is an error.
    """

    operators: tuple[tuple[str, ...], ...]
    mtp: bool = False
    head: bool = False
    named: tuple[str, ...] = ()

    def is_nothing(self) -> bool:
        """Whether all is kept."""
        return not any(self.operators) and not self.mtp and not self.head

    def num_layers(self, operator: str) -> int:
        """Layers of which `operator` is recomputed."""
        return sum(operator in layer for layer in self.operators)

    def words(self) -> str:
        """For people: `gate_up in 12 of 30 layers, head`."""
        names = dict.fromkeys(name for layer in self.operators for name in layer)
        total = len(self.operators)
        parts = [f"{_WORDS.get(name, name)} in {self.num_layers(name)} of {total} layers" for name in names]
        parts += ["multi-token prediction"] * self.mtp + ["head and loss"] * self.head
        return ", ".join(parts) or "nothing"


_WORDS = {"block": "everything", "attention": "attention", "experts": "the experts' layer"}


def choose_recomputation(
    num_layers: int,
    *,
    recompute: str,
    recompute_granularity: str,
    refined_recompute: str | None,
    no_recompute_layers: str | None,
    use_recompute_moe: bool,
    use_recompute_mtp: bool,
    use_recompute_loss_fn: bool,
) -> Recomputation:
    """What the keys ask for, in a model of `num_layers` blocks (`recompute: auto` is chosen elsewhere).

    Raises:
        ConfigError: a layer is named that the model does not have.
    """
    if recompute == "false":
        return Recomputation(((),) * num_layers, use_recompute_mtp, use_recompute_loss_fn)
    left_out = parse_layers("no_recompute_layers", no_recompute_layers or "", num_layers)
    if recompute_granularity == "selective":
        chosen = parse_operators(refined_recompute or ",".join(f"{name}:all" for name in CHEAP), num_layers)
    else:
        name = {"full": "block", "full_attn": "attention", "core_attn": "core_attention"}[
            recompute_granularity
        ]
        chosen = {name: frozenset(range(num_layers))}
        if use_recompute_moe and recompute_granularity != "full":
            chosen["experts"] = chosen[name]
    whole = recompute_granularity == "full"
    return Recomputation(
        tuple(
            tuple(name for name, layers in chosen.items() if layer in layers and name not in OUTSIDE)
            if layer not in left_out
            else ()
            for layer in range(num_layers)
        ),
        mtp=use_recompute_mtp or whole or "mtp" in chosen,
        head=use_recompute_loss_fn or "head" in chosen,
        named=tuple(name for name in chosen if name != "head") if refined_recompute else (),
    )


def parse_operators(text: str, num_layers: int) -> dict[str, frozenset[int]]:
    """`gate_up:all,norm:4,qkv:0-3+8-9` to the layers of each operator; a plain number is a count.

    Raises:
        ConfigError: a layer is named that there is not.
    """
    chosen = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        operator, _, layers = part.partition(":")
        if layers in ("", "all"):
            chosen[operator] = frozenset(range(num_layers))
        elif layers.isdecimal():
            if int(layers) > num_layers:
                raise ConfigError(
                    f"refined_recompute: {part} asks for {layers} layers, and the model has {num_layers}; "
                    f"write {operator}:all"
                )
            chosen[operator] = frozenset(range(int(layers)))
        else:
            chosen[operator] = parse_layers("refined_recompute", layers.replace("+", ","), num_layers)
    return chosen


def parse_layers(key: str, text: str, num_layers: int) -> frozenset[int]:
    """`0,3,8-11` to the numbers of layers.

    Raises:
        ConfigError: a layer is named that there is not.
    """
    numbers: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    if numbers and max(numbers) >= num_layers:
        raise ConfigError(
            f"{key}: there is no layer {max(numbers)}; the model has the layers 0 to {num_layers - 1}"
        )
    return frozenset(numbers)
