"""Text in, text out, over a tiny model and its own tokenizer and template."""

import json
from pathlib import Path
from typing import Any

import pytest

from erniekit.assemble import load_for_inference
from erniekit.data.formats import parse
from erniekit.data.render import render_conversation, written_out
from erniekit.data.template import built_in, load_template
from erniekit.data.tokenizer import load_tokenizer
from erniekit.errors import CheckpointError
from erniekit.generate.rows import parse_question
from erniekit.generate.sampler import Sampling
from erniekit.generate.text import TextGenerator, read_generation_defaults
from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint

GREEDY = Sampling(max_new_tokens=24, temperature=0.0)
QUESTION = [{"role": "user", "content": "caf\u00e9"}]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> TextGenerator:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("text") / "model", seed=4)
    tokenizer = load_tokenizer(folder)
    template = load_template(tokenizer, chat_template=None)
    model = load_for_inference(folder, compute_type="fp32").model
    return TextGenerator(model, tokenizer, template, end_ids=[2], max_context=256)


def test_prompt_is_rendered_as_in_training_and_opens_the_answer(generator: TextGenerator) -> None:
    text = generator.tokenizer.decode(generator.render(QUESTION))
    assert text == "<|user|>caf\u00e9<|end|><|assistant|>"


def test_a_prompt_with_tools_is_what_training_renders(generator: TextGenerator) -> None:
    """The text before a trained answer, with definitions, calls and results of tools."""
    row: dict[str, Any] = {
        "tools": [{"type": "function", "function": {"name": "clock", "parameters": {}}}],
        "messages": [
            *QUESTION,
            {"role": "assistant", "content": "", "tool_calls": [{"name": "clock", "arguments": {"a": 1}}]},
            {"role": "tool", "name": "clock", "content": "07:40"},
            {"role": "assistant", "content": "now"},
        ],
    }
    template = built_in("ernie45-thinking", generator.tokenizer.special_tokens)
    for used in (template, generator.template):
        assert used is not None
        answering = TextGenerator(None, generator.tokenizer, used, end_ids=[2], max_context=256)
        parsed = parse("messages", row)
        assert not isinstance(parsed, str)
        written, _ = written_out(used, parsed.messages)
        (trained,) = render_conversation(
            used,
            written,
            tools=parsed.tools,
            trained=[False, True],
            special_texts=generator.tokenizer.special_texts | {"<|im_end|>"},
        )
        question = parse_question(json.dumps({**row, "messages": row["messages"][:3]}), "a:1", is_json=True)
        prompt = answering.text_of(answering.render(question.messages, tools=question.tools))
        assert trained.text[: trained.turns[0].start] == prompt
        assert (
            "07:40" in prompt
            and '"name": "clock"' in prompt
            and used.renders_tools == ("parameters" in prompt)
        )


def test_streamed_text_is_the_text_of_all_tokens(generator: TextGenerator) -> None:
    """A random model writes random bytes, most of them no UTF-8: pieces must still join to the whole."""
    prompt = generator.render(QUESTION)
    events = list(generator.stream([prompt], GREEDY))
    tokens = [event.token_id for event in events if event.finish_reason != "eos"]
    assert len(tokens) == 24
    assert "".join(event.text for event in events) == generator.tokenizer.decode(tokens)


def test_answers_of_a_batch_are_those_of_the_stream(generator: TextGenerator) -> None:
    prompts = [generator.render(QUESTION), generator.render([{"role": "user", "content": "another one"}])]
    answers = generator.answer(prompts, GREEDY)
    for prompt, answer in zip(prompts, answers, strict=True):
        events = list(generator.stream([prompt], GREEDY))
        assert answer.text == "".join(event.text for event in events)
        assert answer.finish_reason == events[-1].finish_reason == "length"
        assert (answer.num_prompt_tokens, answer.num_tokens) == (len(prompt), len(events))


def test_stop_text_ends_the_answer(generator: TextGenerator) -> None:
    prompt = generator.render(QUESTION)
    whole = generator.answer([prompt], GREEDY)[0].text
    stop = whole[5:7]
    sampling = Sampling(max_new_tokens=24, temperature=0.0, stop=(stop,))
    answer = generator.answer([prompt], sampling)[0]
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop"


def test_without_a_template_nothing_can_be_asked(generator: TextGenerator) -> None:
    bare = TextGenerator(generator.model, generator.tokenizer, None, end_ids=[2], max_context=256)
    with pytest.raises(CheckpointError, match="no chat template"):
        bare.render(QUESTION)


def test_generation_defaults_of_a_folder(tmp_path: Path) -> None:
    assert read_generation_defaults(tmp_path) == {}
    path = tmp_path / "generation_config.json"
    path.write_text('{"temperature": 0.5}')
    assert read_generation_defaults(tmp_path) == {"temperature": 0.5}
    for damaged in ("{", "[1]"):
        path.write_text(damaged)
        with pytest.raises(CheckpointError, match="generation_config.json"):
            read_generation_defaults(tmp_path)
