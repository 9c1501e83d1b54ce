"""A model's tokenizer as GGUF files hold it: every token with its kind, and how llama.cpp splits texts.

SentencePiece models are llama.cpp's `llama` tokenizer; byte-level BPE is its `gpt2`, where the rule by which
texts are cut into words has to be one that llama.cpp knows by name.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erniekit.data.tokenizer import SentencePieceTokenizer
from erniekit.errors import UnsupportedError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_ADDED_SCORE = -1000.0
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
# Rules of cutting as tokenizer.json writes them -> llama.cpp's name.
_SPLITTERS: tuple[tuple[Sequence[dict[str, Any]], str], ...] = (
    ([_BYTE_LEVEL], "gpt-2"),
    ([_DIGITS, _BYTE_LEVEL], "smollm"),
)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, their kinds, and what else the kind of tokenizer needs.

    model: `llama` or `gpt2`. scores and adds_space are of the first, merges and splitter of the second.
    """

    model: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    splitter: str | None = None
    adds_space: bool | None = None


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """The vocabulary of a model folder, filled up with unused tokens to `size`.

    Raises:
        UnsupportedError: llama.cpp has no such tokenizer.
    """
    path = folder / "tokenizer.model"
    made = _of_sentencepiece(SentencePieceTokenizer(folder)) if path.is_file() else _of_json(folder)
    missing = size - len(made.tokens)
    if missing < 0:
        raise UnsupportedError(
            f"{folder}: the tokenizer has {len(made.tokens)} tokens and the model {size}, which llama.cpp "
            "does not read; write copy_tokenizer: false"
        )
    made.tokens.extend(f"[PAD{index}]" for index in range(len(made.tokens), size))
    made.kinds.extend([UNUSED] * missing)
    made.scores.extend([_ADDED_SCORE] * (missing if made.scores else 0))
    return made


def _of_sentencepiece(tokenizer: SentencePieceTokenizer) -> Vocabulary:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(tokenizer.folder / "tokenizer.model"))
    texts = list(range(model.get_piece_size()))
    kinds = [_kind(model, index) for index in texts]
    tokens = [model.id_to_piece(index) for index in texts]
    scores = [model.get_score(index) for index in texts]
    beyond = range(len(tokens), tokenizer.vocab_size)
    tokens += [f"[PAD{index}]" for index in beyond]
    kinds += [UNUSED] * len(beyond)
    scores += [_ADDED_SCORE] * len(beyond)
    for index, text in tokenizer.whole_tokens.items():
        if kinds[index] != UNKNOWN:
            kind = CONTROL if index in tokenizer.special_ids else USER_DEFINED
            tokens[index], kinds[index], scores[index] = text, kind, _ADDED_SCORE
    adds_space = model.encode("a", out_type=str)[0].startswith("\u2581")
    return Vocabulary("llama", tokens, kinds, scores=scores, adds_space=adds_space)


def _kind(model: Any, index: int) -> int:
    if model.is_unknown(index):
        return UNKNOWN
    if model.is_control(index):
        return CONTROL
    if model.is_unused(index):
        return UNUSED
    return BYTE if model.is_byte(index) else NORMAL


def _of_json(folder: Path) -> Vocabulary:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    model, splitter = content["model"], content["pre_tokenizer"] or {}
    rules = splitter.get("pretokenizers", [splitter])
    found = [name for wanted, name in _SPLITTERS if _is_same(rules, wanted)]
    if model.get("type") != "BPE" or content["normalizer"] is not None or not found:
        raise UnsupportedError(
            f"{path}: llama.cpp has no name for this tokenizer's way of cutting texts; write "
            "copy_tokenizer: false for a file without a vocabulary"
        )
    by_id = {index: text for text, index in model["vocab"].items()}
    added = {row["id"]: row for row in content["added_tokens"]}
    tokens, kinds = [], []
    for index in range(max([*by_id, *added]) + 1):
        row = added.get(index)
        tokens.append(row["content"] if row else by_id.get(index, f"[PAD{index}]"))
        kind = NORMAL if index in by_id else UNUSED
        kinds.append((CONTROL if row["special"] else USER_DEFINED) if row else kind)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return Vocabulary("gpt2", tokens, kinds, merges=merges, splitter=found[0])


def _is_same(rules: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]) -> bool:
    """Whether rules say what is wanted; keys that change no cut do not count."""
    return len(rules) == len(wanted) and all(
        all(rule.get(key) == value for key, value in each.items())
        for rule, each in zip(rules, wanted, strict=True)
    )
