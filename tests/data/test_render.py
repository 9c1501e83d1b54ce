"""The mask: exactly the answers and the token that ends each, for any template, or an error."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniekit.data.render import render_conversation, tokenise
from erniekit.data.template import built_in
from erniekit.errors import DataError
from tests.data.makers import CHATML, FORGETFUL, TEMPLATES, json_tokenizer, sentencepiece_tokenizer, template

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), min_size=1, max_size=20)
SPICY = st.one_of(
    TEXT, st.sampled_from(["{{ x }}", "{% if %}", " a ", "\n\n", "</think>", "User: ", "\ufeff"])
)
ENDS = {"chatml": "<|im_end|>", "chatml marked": "<|im_end|>", "llama3": "<|eot_id|>", "mistral": "</s>"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return json_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def conversation(texts):
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]


def trained_texts(rendered, tokenizer):
    """The runs of trained tokens, decoded."""
    ids, labels = tokenise(rendered, tokenizer)
    assert len(ids) == len(labels)
    runs, open_run = [], False
    for token, label in zip(ids, labels, strict=True):
        if label < 0:
            open_run = False
            continue
        assert label == token
        if open_run:
            runs[-1].append(token)
        else:
            runs.append([token])
        open_run = True
    return [tokenizer.decode(run) for run in runs], tokenizer.decode(ids)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(SPICY, min_size=2, max_size=6).filter(lambda t: len(t) % 2 == 0), data=st.data())
def test_exactly_the_answers_are_trained_on(tokenizer, name, texts, data):
    chat = template(TEMPLATES[name])
    answers = len(texts) // 2
    wanted = data.draw(st.lists(st.booleans(), min_size=answers, max_size=answers).filter(any))
    messages = conversation(texts)
    (rendered,) = render_conversation(
        chat, messages, tools=None, trained=wanted, special_texts=tokenizer.special_texts
    )
    runs, text = trained_texts(rendered, tokenizer)
    lead = " " if name == "mistral" else ""
    kept = [answer.strip() if name == "llama3" else answer for answer in texts[1::2]]
    assert runs == [lead + answer + ENDS[name] for answer, use in zip(kept, wanted, strict=True) if use]
    # What is trained on is, byte for byte, the beginning of what the template renders.
    assert chat.render(messages).startswith(text) and text.endswith(ENDS[name])


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(SPICY, min_size=3, max_size=5).filter(lambda t: len(t) % 2))
def test_the_context_is_what_a_chat_sends(tokenizer, texts):
    """Up to each answer, the tokens are those of the rendered generation prompt."""
    chat = template(CHATML)
    messages = conversation(texts)[:-1]
    (rendered,) = render_conversation(
        chat,
        messages,
        tools=None,
        trained=[True] * (len(messages) // 2),
        special_texts=tokenizer.special_texts,
    )
    ids, labels = tokenise(rendered, tokenizer)
    prompt = tokenizer.encode(chat.render(messages[:1], add_generation_prompt=True))
    assert ids[: len(prompt)] == prompt
    assert all(label < 0 for label in labels[: len(prompt)]) and labels[len(prompt)] >= 0


def test_ernie_ends_answers_with_eos_and_contexts_with_a_separator(tmp_path):
    tokenizer = sentencepiece_tokenizer(tmp_path / "sp")
    chat = built_in("ernie45", tokenizer.special_tokens)
    messages = [{"role": "system", "content": "be kind"}, *conversation(["hi", "hello", "and", "yes"])]
    (rendered,) = render_conversation(
        chat, messages, tools=None, trained=[True, True], special_texts=tokenizer.special_texts
    )
    assert rendered.text == (
        "<|begin_of_sentence|>be kind\nUser: hi\nAssistant: hello<|end_of_sentence|>"
        "User: and\nAssistant: yes<|end_of_sentence|>"
    )
    ids, labels = tokenise(rendered, tokenizer)
    separator = tokenizer.token_id("<|end_of_sentence|>")
    assert [label for token, label in zip(ids, labels, strict=True) if token == separator] == [2, 2]
    trained = [label for label in labels if label >= 0]
    assert tokenizer.decode(trained) == "hello</s>yes</s>"


def test_a_template_that_rewrites_history_gives_one_sample_an_answer(tokenizer):
    messages = conversation(["q1", "<think>a</think>one", "q2", "<think>b</think>two"])
    chat = template(FORGETFUL)
    parts = render_conversation(
        chat, messages, tools=None, trained=[True, True], special_texts=tokenizer.special_texts
    )
    assert [trained_texts(part, tokenizer)[0] for part in parts] == [
        ["<think>a</think>one<|im_end|>"],
        ["<think>b</think>two<|im_end|>"],
    ]
    assert "<think>a</think>" not in parts[1].text
    assert parts[1].text == chat.render(messages).removesuffix("\n")


REFUSED = {
    "no special token ends an answer": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        "never learn to stop",
    ),
    "no generation prompt": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
        "ignores add_generation_prompt",
    ),
    "another prompt than the answer has": (
        CHATML.replace("assistant\n{% endif %}", "assistant\nThinking...{% endif %}"),
        "differently from its own generation prompt",
    ),
    "drops the answer": (
        "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}"
        "{% endfor %}",
        "does not render the content of an answer",
    ),
    "refuses": ("{{ raise_exception('no such thing') }}", "no such thing"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_decided_is_an_error(tokenizer, why):
    source, message = REFUSED[why]
    with pytest.raises(DataError, match=message):
        render_conversation(
            template(source),
            conversation(["a", "b"]),
            tools=None,
            trained=[True],
            special_texts=tokenizer.special_texts,
        )


def test_templates_run_in_a_sandbox():
    evil = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(DataError):
        template(evil).render(conversation(["a"]))


def test_the_thinking_template_trains_reasoning_answer_and_end(tokenizer):
    chat = built_in("ernie45-thinking", {})
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "answer", "reasoning_content": "because"},
    ]
    (rendered,) = render_conversation(
        chat, messages, tools=None, trained=[True], special_texts=tokenizer.special_texts
    )
    runs, _ = trained_texts(rendered, tokenizer)
    assert runs == ["because\n</think>\n\n<response>\nanswer\n</response>\n<|im_end|>"]
