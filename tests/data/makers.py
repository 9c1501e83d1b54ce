"""Tokenizers and templates for tests of the data room, made on the spot."""

import json
from pathlib import Path

from erniekit.data.template import ChatTemplate
from erniekit.data.tokenizer import Tokenizer, load_tokenizer

SPECIALS = [
    "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "[INST]", "[/INST]", "<|begin_of_sentence|>", "<|end_of_sentence|>",
]  # fmt: skip
TEXTS = [
    "hello world, how are you today",
    "the answer is forty-two",
    "你好 世界",
    "a b c 1 2 3",
    "User: Assistant: ",
]


def json_tokenizer(folder: Path, **settings: object) -> Tokenizer:
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


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<s>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
# Drops the reasoning of all answers but the last, as reasoning models do.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "chatml marked": CHATML_MARKED,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
}


def template(source: str, **special: str) -> ChatTemplate:
    """A template under test."""
    return ChatTemplate(source, "test", special)
