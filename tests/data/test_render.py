"""The mask: exactly the answers and the token that ends each, for any template, or an error."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniekit.data.render import render_conversation, tokenise, written_out
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


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL_TALK = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny"},
    {"role": "tool", "content": "12 degrees"},
    {"role": "assistant", "content": "Sunny."},
]


def render(chat, messages, tokenizer, more=frozenset()):
    answers = sum(message["role"] == "assistant" for message in messages)
    return render_conversation(
        chat,
        messages,
        tools=None,
        trained=[True] * answers,
        special_texts=tokenizer.special_texts | more,
    )


def test_the_thinking_template_trains_tool_calls(tokenizer):
    (rendered,) = render(built_in("ernie45-thinking", {}), TOOL_TALK, tokenizer)
    runs, text = trained_texts(rendered, tokenizer)
    assert runs == [
        '\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
        "<|im_end|>",
        "\n</think>\n\n<response>\nSunny.\n</response>\n<|im_end|>",
    ]
    assert "<tool_response>\nsunny\n</tool_response>" in text


def test_a_tag_that_closes_the_answer_is_not_what_ends_the_turn(tokenizer):
    """In a vocabulary where `</response>` is a special token too, `<|im_end|>` must still be trained."""
    messages = conversation(["q", "a", "q", "b"])
    tags = frozenset({"<response>", "</response>", "<think>", "</think>"})
    (rendered,) = render(built_in("ernie45-thinking", {}), messages, tokenizer, tags)
    assert [turn.end for turn in rendered.turns] == ["<|im_end|>", "<|im_end|>"]
    assert trained_texts(rendered, tokenizer)[0][0].endswith("a\n</response>\n<|im_end|>")


def test_a_token_that_only_ends_the_whole_text_is_not_trained(tokenizer):
    source = CHATML.replace(
        "{% if add_generation_prompt %}", "{% if not add_generation_prompt %}</s>{% else %}"
    )
    (rendered,) = render(template(source), conversation(["q", "a", "q", "b"]), tokenizer)
    assert trained_texts(rendered, tokenizer)[0] == ["a<|im_end|>", "b<|im_end|>"]


# As Qwen3: the last answer has a block for its reasoning, and the prompt an empty one unless thinking.
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n"
    "{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def test_reasoning_is_trained_as_a_thinking_chat_asks_for_it(tokenizer):
    chat = template(THINKS)
    messages = conversation(["q1", "a1", "q2", "a2"])
    messages[3]["reasoning_content"] = "because"
    first, second = render(chat, messages, tokenizer)
    assert trained_texts(first, tokenizer)[0] == ["a1<|im_end|>"]
    assert first.text.startswith(chat.render(messages[:1], add_generation_prompt=True))
    assert trained_texts(second, tokenizer)[0] == ["<think>\nbecause\n</think>\n\na2<|im_end|>"]
    prompt = chat.render(messages[:3], add_generation_prompt=True, enable_thinking=True)
    assert second.text.startswith(prompt) and "<think>" not in prompt


@pytest.mark.parametrize("name", ["mistral", "ernie45"])
def test_calls_and_results_are_written_out_where_the_template_has_no_place_for_them(tokenizer, name):
    chat = built_in(name, {}) if name == "ernie45" else template(TEMPLATES[name])
    messages, changed = written_out(chat, TOOL_TALK)
    assert changed and [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[1]["content"].startswith('<tool_call>\n{"name": "weather"')
    assert messages[2]["content"] == (
        "<tool_response>\nsunny\n</tool_response>\n<tool_response>\n12 degrees\n</tool_response>"
    )
    (rendered,) = render(chat, messages, tokenizer)
    assert len(rendered.turns) == 2
    plain = conversation(["q", "a"])
    assert written_out(chat, plain) == (plain, False)


@pytest.mark.parametrize("name", TEMPLATES)
def test_special_tokens_written_in_a_content_change_no_border(tokenizer, name):
    chat = template(TEMPLATES[name])
    end = ENDS[name]
    messages = conversation([f"what is {end}?", f"it {end} ends", "and?", "so"])
    (rendered,) = render(chat, messages, tokenizer)
    runs, text = trained_texts(rendered, tokenizer)
    lead = " " if name == "mistral" else ""
    assert runs == [f"{lead}it {end} ends{end}", f"{lead}so{end}"]
    assert chat.render(messages).startswith(text)


THINKING = built_in("ernie45-thinking", {})
THOUGHT = [
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4", "reasoning_content": "two and two"},
    {"role": "user", "content": "times 2?"},
    {"role": "assistant", "content": "8", "reasoning_content": "twice four"},
]
SPECIAL = frozenset({"<|im_start|>", "<|im_end|>"})


def thinking_texts(**changes):
    trained = changes.pop("trained", [True, True])
    rendered = render_conversation(
        THINKING, THOUGHT, tools=None, trained=trained, special_texts=SPECIAL, **changes
    )
    return [
        [part.text[max(turn.start, turn.trained_from) : turn.stop] for turn in part.turns]
        for part in rendered
    ]


def test_reasoning_is_part_of_the_answer():
    # The generation prompt has opened the reasoning already.
    assert thinking_texts() == [
        [
            "two and two\n</think>\n\n<response>\n4\n</response>\n<|im_end|>",
            "twice four\n</think>\n\n<response>\n8\n</response>\n<|im_end|>",
        ]
    ]


def test_reasoning_may_be_masked():
    ends = ["\n\n<response>\n4\n</response>\n<|im_end|>", "\n\n<response>\n8\n</response>\n<|im_end|>"]
    assert thinking_texts(mask_thinking=True) == [ends]


def test_one_sample_for_each_answer():
    apart = render_conversation(
        THINKING, THOUGHT, tools=None, trained=[True, True], special_texts=SPECIAL, apart=True
    )
    assert [len(part.turns) for part in apart] == [1, 1]
    prompt = THINKING.render(THOUGHT[:1], add_generation_prompt=True, enable_thinking=True)
    assert apart[0].text.startswith(prompt) and apart[0].turns[0].start == len(prompt)
    assert apart[1].text.startswith(
        THINKING.render(THOUGHT[:3], add_generation_prompt=True, enable_thinking=True)
    )


def test_masked_reasoning_keeps_its_tokens(tmp_path):
    """Tokens are those of the whole answer; only their labels go."""
    tokenizer = json_tokenizer(tmp_path)
    whole, masked = (
        tokenise(
            render_conversation(
                THINKING,
                THOUGHT[:2],
                tools=None,
                trained=[True],
                special_texts=tokenizer.special_texts,
                mask_thinking=mask,
            )[0],
            tokenizer,
        )
        for mask in (False, True)
    )
    assert whole[0] == masked[0]
    kept = [label for label in masked[1] if label != -100]
    assert tokenizer.decode(kept) == "\n\n<response>\n4\n</response>\n<|im_end|>"
    assert [label for label in whole[1] if label != -100][-len(kept) :] == kept
