"""Tokenizers of both kinds, trained on a few lines in a moment, for tests that need a real one.

No vocabulary is kept in the repository: what is trained here has every byte, special tokens at fixed
ids and a handful of merges, which is all that tests of round trips and masks need.
"""

import json
from pathlib import Path
from typing import Any

from erniekit.data.tokenizer import Tokenizer, load_tokenizer

SPECIALS = [
    "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "[INST]", "[/INST]", "<|begin_of_sentence|>", "<|end_of_sentence|>",
]  # fmt: skip
TEXTS = [
    "hello world, how are you today",
    "the answer is forty-two",
    "\u4f60\u597d \u4e16\u754c",
    "a b c 1 2 3",
    "User: Assistant: ",
]


def json_tokenizer(folder: Path, **settings: Any) -> Tokenizer:
    """A byte-level BPE, special tokens first."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 5, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    content = {"eos_token": "</s>", "bos_token": "<s>", "pad_token": "<unk>", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return load_tokenizer(folder)


def sentencepiece_tokenizer(folder: Path) -> Tokenizer:
    """A SentencePiece BPE with byte fallback and added tokens at fixed ids, as ERNIE 4.5's."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(TEXTS * 40), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        add_dummy_prefix=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    added = {"<|begin_of_sentence|>": 1001, "<|end_of_sentence|>": 1000, "<think>": 1002}
    decoder = {
        str(index): {"content": token, "special": token != "<think>"} for token, index in added.items()
    }
    content = {"eos_token": "</s>", "bos_token": "<s>", "pad_token": "<unk>", "added_tokens_decoder": decoder}
    content |= {"cls_token": "<|begin_of_sentence|>", "sep_token": "<|end_of_sentence|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return load_tokenizer(folder)
