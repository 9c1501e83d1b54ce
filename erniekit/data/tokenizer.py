"""One small interface over the two kinds of tokenizer that checkpoints carry.

`tokenizer.json` is read by the `tokenizers` library, `tokenizer.model` by `sentencepiece` with the
added tokens of the JSON files beside it. Encoding adds nothing: what the chat template renders is
what the model sees. Special tokens that are written out in a text are recognised.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from erniekit.errors import CheckpointError

FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")


class Tokenizer(ABC):
    """Text to ids and back.

    Attributes:
        folder: where its files are.
        special_tokens: role (`eos_token`, ...) -> text of the token.
        chat_template: the checkpoint's Jinja template, or None.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._settings = _read_json(folder / "tokenizer_config.json")
        self.special_tokens = _special_tokens(folder, self._settings)
        self.chat_template = _chat_template(folder, self._settings)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text; special tokens written in it count as such, nothing is added.

        Raises:
            UnicodeEncodeError: the text holds half of a surrogate pair, which is no character.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD."""

    @abstractmethod
    def token_id(self, token: str) -> int | None:
        """Id of one token by its text, None when the vocabulary does not have it."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""

    @property
    @abstractmethod
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens."""

    @property
    @abstractmethod
    def special_texts(self) -> frozenset[str]:
        """Texts of all special tokens."""

    @cached_property
    def bos_id(self) -> int | None:
        """Id of the token that begins a text, if the checkpoint names one."""
        return self._role("bos_token")

    @cached_property
    def eos_id(self) -> int | None:
        """Id of the token that ends a text, if the checkpoint names one."""
        return self._role("eos_token")

    @cached_property
    def pad_id(self) -> int | None:
        """Id of the padding token, if the checkpoint names one."""
        return self._role("pad_token")

    def files(self) -> list[Path]:
        """The files that make up this tokenizer, to be copied with a model."""
        return [self.folder / name for name in FILES if (self.folder / name).is_file()]

    def _role(self, role: str) -> int | None:
        text = self.special_tokens.get(role)
        return None if text is None else self.token_id(text)


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json`."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as Backend

        super().__init__(folder)
        path = folder / "tokenizer.json"
        try:
            self._backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        self._backend.no_truncation()
        self._backend.no_padding()
        added = self._backend.get_added_tokens_decoder()
        special = {index: token.content for index, token in added.items() if token.special}
        self._special_ids, self._special_texts = frozenset(special), frozenset(special.values())

    def encode(self, text: str) -> list[int]:
        _refuse_halves(text)
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def token_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def special_ids(self) -> frozenset[int]:
        return self._special_ids

    @property
    def special_texts(self) -> frozenset[str]:
        return self._special_texts


class SentencePieceTokenizer(Tokenizer):
    """A `tokenizer.model` with added tokens at fixed ids (the Ernie4_5 class of tokenizers)."""

    def __init__(self, folder: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        super().__init__(folder)
        path = folder / "tokenizer.model"
        try:
            self._backend = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        size = self._backend.get_piece_size()
        own = {
            self._backend.id_to_piece(index): index
            for index in range(size)
            if self._backend.is_control(index) or self._backend.is_unknown(index)
        }
        added, special = _added_tokens(folder, self._settings)
        self._ids = {**own, **added}
        self._texts = {index: text for text, index in self._ids.items()}
        specials = {**own, **{text: index for text, index in added.items() if text in special}}
        self._special_ids, self._special_texts = frozenset(specials.values()), frozenset(specials)
        self._size = max([size - 1, *self._ids.values()]) + 1
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._splitter = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

    def encode(self, text: str) -> list[int]:
        _refuse_halves(text)
        pieces = self._splitter.split(text) if self._splitter else [text]
        ids: list[int] = []
        for piece in pieces:
            if piece in self._ids:
                ids.append(self._ids[piece])
            elif piece:
                ids.extend(self._backend.encode(piece))
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        texts: list[str] = []
        run: list[int] = []
        for index in [*map(int, ids), -1]:
            if index != -1 and index not in self._texts:
                run.append(index)
                continue
            if run:
                texts.append(self._backend.decode(run))
                run = []
            if index != -1 and not (skip_special_tokens and index in self._special_ids):
                texts.append(self._texts[index])
        return "".join(texts)

    def token_id(self, token: str) -> int | None:
        if token in self._ids:
            return self._ids[token]
        index = self._backend.piece_to_id(token)
        return None if index == self._backend.unk_id() else index

    @property
    def vocab_size(self) -> int:
        return self._size

    @property
    def whole_tokens(self) -> Mapping[int, str]:
        """Tokens that are recognised as they are written, by id: those of the model's own, and added ones."""
        return self._texts

    @property
    def special_ids(self) -> frozenset[int]:
        return self._special_ids

    @property
    def special_texts(self) -> frozenset[str]:
        return self._special_texts


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder.

    Raises:
        CheckpointError: there is none, or its file is damaged.
    """
    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
        return JsonTokenizer(folder)
    if (folder / "tokenizer.model").is_file():
        return SentencePieceTokenizer(folder)
    raise CheckpointError(f"{folder} has no tokenizer: neither tokenizer.json nor tokenizer.model is there")


class StreamDecoder:
    """Text of ids that come one by one; a character appears when all of its bytes are there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # Ids before `_start` are settled; those from `_start` to `_shown` are kept as context.
        self._start = self._shown = 0

    def push(self, token_id: int) -> str:
        """Take one id; returns the text that became certain."""
        self._ids.append(int(token_id))
        return self._advance(final=False)

    def flush(self) -> str:
        """The rest; bytes of a character that never became whole appear as U+FFFD."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._shown])
        after = self._tokenizer.decode(self._ids[self._start :])
        if not final and after.endswith("\ufffd"):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return after[len(before) :]


def _refuse_halves(text: str) -> None:
    """Raise UnicodeEncodeError for half of a surrogate pair; of that the libraries say anything but this."""
    if not text.isascii():
        text.encode("utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error})") from error


def _special_tokens(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for content in (_read_json(folder / "special_tokens_map.json"), settings):
        for role in ROLES:
            value = content.get(role)
            if isinstance(value, dict):
                value = value.get("content")
            if isinstance(value, str):
                found[role] = value
    return found


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        return named.get("default") or next(iter(named.values()), None)
    return template


def _added_tokens(folder: Path, settings: dict[str, Any]) -> tuple[dict[str, int], set[str]]:
    """Text -> id of the tokens added to a SentencePiece model, and the texts of the special ones."""
    added: dict[str, int] = dict(_read_json(folder / "added_tokens.json"))
    special = set(added)
    for index, token in settings.get("added_tokens_decoder", {}).items():
        added[token["content"]] = int(index)
        special.discard(token["content"])
        if token.get("special", False):
            special.add(token["content"])
    return added, special
