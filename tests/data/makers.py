"""Tokenizers, templates, readers, sets and loaders for tests of the data room."""

from erniekit.data.pack import BatchShape
from erniekit.data.pipeline import build_loader, open_train_samples
from erniekit.data.reader import SampleReader
from erniekit.data.template import ChatTemplate
from erniekit.testing.tokenizers import json_tokenizer, sentencepiece_tokenizer

__all__ = [
    "json_tokenizer",
    "loader",
    "origins",
    "reader",
    "samples",
    "sentencepiece_tokenizer",
    "template",
]

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


FIELDS = dict(
    train_dataset_type=None,
    train_dataset_prob=None,
    mix_strategy="random",
    num_samples_each_epoch=None,
    random_shuffle=True,
    max_estimate_samples=100000,
)


def reader(tokenizer, stage="SFT", **changes):
    fields = dict(max_seq_len=128, overlong="truncate", skip_bad_rows=False, use_template=True)
    return SampleReader(tokenizer, template(CHATML), stage, **{**fields, **changes})


def samples(tokenizer, path, seed=3, **changes):
    names = {"ignore_eos_token", "max_seq_len", "overlong", "skip_bad_rows", "use_template", "stage"} & set(
        changes
    )
    made = reader(tokenizer, **{name: changes.pop(name) for name in names})
    return open_train_samples(made, seed, train_dataset_path=str(path), **{**FIELDS, **changes})


def loader(found, batch=2, accumulation=2, seed=3, **changes):
    shape = BatchShape(
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=accumulation,
    )
    fields = dict(
        max_seq_len=128, packing=True, buffer_size=16, pad_to_max_seqlen=False, dataloader_num_workers=0
    )
    return build_loader(found, shape, seed, **{**fields, **changes})


def origins(batches):
    return [origin for batch in batches for row in batch.origins for origin in row]
