"""Which matrices `lora_target` chooses."""

import pytest

from erniekit.adapters.targets import find_targets
from erniekit.errors import ConfigError
from tests.adapters import models


@pytest.fixture(scope="module")
def dense():
    return models.dense()


@pytest.fixture(scope="module")
def moe():
    return models.moe(modalities=2)


def chosen(model, *words: str) -> set[str]:
    """Names in files of the chosen pieces, layers' and experts' numbers left out."""
    found = find_targets(model, models.layout(model), words)
    return {
        ".".join(
            part for part in piece.name.split(".") if not part.isdigit() and part not in ("model", "layers")
        )
        for target in found
        for piece in target.pieces
    }


ATTENTION = {f"self_attn.{name}_proj" for name in "qkvo"}
MLP = {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
EXPERTS = {f"mlp.experts.{name}_proj" for name in ("gate", "up", "down")}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), ATTENTION | MLP),
        (("all-linear",), ATTENTION | MLP),
        (("q_proj",), {"self_attn.q_proj"}),
        (("qkv_proj",), ATTENTION - {"self_attn.o_proj"}),
        (("q_proj", "v_proj", "mlp.down_proj"), {"self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"}),
        (("self_attn.*_proj$",), ATTENTION),
        ((".*(gate|up)_proj.*",), {"mlp.gate_proj", "mlp.up_proj"}),
    ],
)
def test_words_and_expressions(dense, words, expected) -> None:
    assert chosen(dense, *words) == expected


def test_layers_can_be_chosen(dense) -> None:
    found = find_targets(dense, models.layout(dense), [r"layers\.1\..*o_proj"])
    assert [target.module for target in found] == ["model.layers.1.self_attn.o_proj"]
    found = find_targets(dense, models.layout(dense), ["model.layers.0.mlp.down_proj"])
    assert [target.module for target in found] == ["model.layers.0.mlp.down_proj"]


def test_parts_of_names_are_whole(dense) -> None:
    with pytest.raises(ConfigError, match="'_proj' matches no matrix"):
        chosen(dense, "_proj")


def test_pieces_keep_their_columns(dense) -> None:
    (target, _) = find_targets(dense, models.layout(dense), ["v_proj"])
    # 4 heads and 2 x 2 key heads of 16: v is the last 32 of 128 columns.
    (piece,) = target.pieces
    assert (piece.start, piece.stop) == (96, 128)
    assert piece.name == "model.layers.0.self_attn.v_proj"


def test_experts_and_router_only_when_asked(moe) -> None:
    usual = chosen(moe)
    assert usual == chosen(moe, "all-linear")
    assert not usual & EXPERTS and "mlp.gate" not in usual
    assert chosen(moe, "experts") == EXPERTS
    assert chosen(moe, "mlp.experts.down_proj") == {"mlp.experts.down_proj"}
    assert chosen(moe, r"\.experts\..*up") == {"mlp.experts.up_proj", "mlp.experts.gate_proj"}
    assert chosen(moe, "router") == chosen(moe, "mlp.gate") == {"mlp.gate"}
    assert chosen(moe, "gate_proj") <= {"mlp.gate_proj", "mlp.shared_experts.gate_proj"}


def test_experts_are_numbered_as_in_files(moe) -> None:
    found = find_targets(moe, models.layout(moe), ["vision_experts"])
    numbers = {piece.name.split(".")[5] for target in found for piece in target.pieces}
    assert numbers == {"4", "5", "6", "7"}
    assert {piece.expert for target in found for piece in target.pieces} == {0, 1, 2, 3}


def test_shared_experts_are_ordinary_layers() -> None:
    model = models.moe(moe_num_shared_experts=1)
    assert {f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")} <= chosen(model)


def test_head() -> None:
    untied = models.dense(tie_word_embeddings=False)
    assert chosen(untied, "head") == chosen(untied, "lm_head") == {"lm_head"}
    assert "lm_head" not in chosen(untied, "all-linear")
    with pytest.raises(ConfigError, match="'head' matches no matrix"):
        chosen(models.dense(), "head")


def test_a_regular_expression_is_told_as_it_was_written(dense) -> None:
    with pytest.raises(ConfigError) as error:
        chosen(dense, r"layers\.9\..*")
    assert r"lora_target: 'layers\.9\..*' matches" in str(error.value)


def test_what_matches_nothing_lists_what_there_is(dense) -> None:
    with pytest.raises(ConfigError) as error:
        chosen(dense, "q_proj", "query")
    message = str(error.value)
    assert "lora_target: 'query' matches no matrix" in message
    assert "the last is model.layers.1.mlp.down_proj" in message
    for name in ("self_attn.q_proj", "mlp.down_proj", "all-linear", "experts"):
        assert name in message


def test_no_expression(dense) -> None:
    with pytest.raises(ConfigError, match="not a regular expression"):
        chosen(dense, "(q_proj")
