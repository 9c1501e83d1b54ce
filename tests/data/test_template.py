import json

import pytest

from erniekit.data.template import built_in, load_template
from erniekit.errors import ConfigError, DataError
from tests.data.makers import CHATML, json_tokenizer, sentencepiece_tokenizer, template

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def test_the_named_one_wins_then_the_checkpoints_then_ernies(tmp_path):
    own = json_tokenizer(tmp_path / "own", chat_template=CHATML)
    assert load_template(own, chat_template=None).source == CHATML
    assert load_template(own, chat_template="ernie45").name == "built-in ernie45"
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}")
    assert load_template(own, chat_template=str(file)).render(TALK) == "hi"
    ernie = sentencepiece_tokenizer(tmp_path / "ernie")
    assert load_template(ernie, chat_template=None).name == "built-in ernie45"
    with pytest.raises(ConfigError, match="neither a file nor one of ernie45"):
        load_template(own, chat_template="ernie46")


def test_a_template_file_beside_the_tokenizer_goes_first(tmp_path):
    tokenizer = json_tokenizer(tmp_path, chat_template=CHATML)
    (tmp_path / "chat_template.jinja").write_text("file")
    assert load_template(type(tokenizer)(tmp_path), chat_template=None).render(TALK) == "file"
    (tmp_path / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": named}))
    assert load_template(type(tokenizer)(tmp_path), chat_template=None).render(TALK) == "d"


def test_no_template_is_none(tmp_path, monkeypatch):
    tokenizer = json_tokenizer(tmp_path)
    monkeypatch.setattr(tokenizer, "token_id", lambda token: None)
    assert load_template(tokenizer, chat_template=None) is None


def test_a_broken_template_is_told_with_its_line():
    with pytest.raises(ConfigError, match="line 2"):
        template("fine\n{% if %}")


def test_what_templates_expect_is_there():
    made = template("{{ bos }}{{ tools | tojson }}{% for m in messages %}{% break %}{% endfor %}", bos="<s>")
    assert made.render(TALK, tools=[{"a": "\u00e9 <b>"}]) == '<s>[{"a": "\u00e9 <b>"}]'
    assert template("{{ strftime_now('%Y') | int > 2000 }}").render(TALK) == "True"
    with pytest.raises(DataError, match="fails on these messages: no"):
        template("{{ raise_exception('no') }}").render(TALK)
    with pytest.raises(DataError):
        template("{{ messages[0].content + 1 }}").render(TALK)


def test_every_failure_of_a_template_is_told():
    for source in ("{{ 1 // 0 }}", "{{ messages[0].content.nothing() }}", "{{ 'a'.join(1) }}"):
        with pytest.raises(DataError, match="fails on these messages"):
            template(source).render(TALK)


def test_json_is_written_as_templates_ask_for_it():
    made = template(
        "{{ tools | tojson(sort_keys=true, separators=(',', ':')) }}{{ tools | tojson(indent=1) }}"
    )
    assert made.render(TALK, tools=[{"b": 1, "a": "\u00e9"}]) == (
        '[{"a":"\u00e9","b":1}][\n {\n  "b": 1,\n  "a": "\u00e9"\n }\n]'
    )


def test_reasoning_is_there_under_both_names():
    made = template("{% for m in messages %}{{ m.thinking }}|{{ m.reasoning_content }};{% endfor %}")
    talk = [TALK[0], {**TALK[1], "reasoning_content": "why"}]
    assert made.render(talk) == "|;why|why;" and "thinking" not in talk[1]


def test_whether_results_show():
    assert template(CHATML).renders_tool_results and built_in("ernie45-thinking", {}).renders_tool_results
    assert not built_in("ernie45", {}).renders_tool_results


def test_whether_calls_and_tools_show():
    assert not template(CHATML).renders_tool_calls and not template(CHATML).renders_tools
    thinking = built_in("ernie45-thinking", {})
    assert thinking.renders_tool_calls and thinking.renders_tools


def test_ernies_template_by_hand():
    made = built_in("ernie45", {})
    assert made.render(TALK[:1], add_generation_prompt=True) == "<|begin_of_sentence|>User: hi\nAssistant: "
    with pytest.raises(DataError, match="system message must come first"):
        made.render([*TALK, {"role": "system", "content": "x"}])
    with pytest.raises(DataError, match="role tool is not known"):
        made.render([{"role": "tool", "content": "x"}])
