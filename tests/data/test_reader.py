"""What the keys of a reader change: which answers are trained on, calls that are checked, warnings."""

import logging

import pytest

from erniekit.data.report import DataReport
from erniekit.data.template import built_in
from erniekit.errors import DataError
from tests.data.makers import json_tokenizer, reader

TALK = {
    "messages": [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "2"},
    ]
}
CLOCK = {"name": "clock", "parameters": {"properties": {"city": {"type": "string"}}, "required": ["city"]}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return json_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def trained(tokenizer, samples):
    return [
        tokenizer.decode([label for label in sample.labels.tolist() if label != -100]) for sample in samples
    ]


def test_last_turn_only(tokenizer):
    both = reader(tokenizer).read("chatml", TALK, "f:1")
    last = reader(tokenizer, train_on="last_turn").read("chatml", TALK, "f:1")
    assert trained(tokenizer, both) == ["1<|im_end|>2<|im_end|>"]
    assert trained(tokenizer, last) == ["2<|im_end|>"]
    assert last[0].input_ids.tolist() == both[0].input_ids.tolist()


def test_last_turn_with_label_0_is_not_trained_on(tokenizer):
    report = DataReport()
    found = reader(tokenizer, train_on="last_turn").read("chatml", {**TALK, "label": [1, 0]}, "f:1", report)
    assert not found and report.untrained == 1


def test_rows_of_another_stage_are_told_as_such(tokenizer):
    pair = {"src": ["a"], "tgt": [], "response": ["x", "y"], "sort": [1, 0]}
    single, other = {"src": ["a"], "tgt": ["b"]}, "; it is "
    with pytest.raises(DataError, match=other + "a pair of answers, which stage: DPO trains on"):
        reader(tokenizer).read("erniekit", pair, "f:1")
    with pytest.raises(DataError, match=other + "no pair of answers: .* stage: SFT"):
        reader(tokenizer, stage="DPO").read("erniekit", single, "f:1")
    for stage, wrong in (("SFT", {**single, "src": [1]}), ("DPO", {**pair, "sort": [1]})):
        with pytest.raises(DataError) as raised:
            reader(tokenizer, stage=stage).read("erniekit", wrong, "f:1")
        assert other not in str(raised.value)


def test_a_sample_for_each_answer(tokenizer):
    found = reader(tokenizer, encode_one_turn=True).read("chatml", TALK, "f:1")
    assert trained(tokenizer, found) == ["1<|im_end|>", "2<|im_end|>"]
    assert len(found[0]) < len(found[1])


def call(**arguments):
    answer = {"role": "assistant", "content": "", "tool_calls": [{"name": "clock", "arguments": arguments}]}
    return {"messages": [{"role": "user", "content": "a"}, answer], "tools": [CLOCK]}


def test_calls_are_checked_against_their_tools(tokenizer):
    report, made = DataReport(), reader(tokenizer)
    for number, row in enumerate((call(city="Lima"), call(town="Lima"), call(city=3)), start=1):
        made.read("chatml", row, f"f:{number}", report)
    assert report.wrong_calls == 2 and report.wrong_call == "f:2: clock lacks city"
    assert any("2 tool calls do not fit" in line for line in report.lines())


def test_arguments_must_be_an_object(tokenizer):
    row = call()
    row["messages"][1]["tool_calls"][0]["arguments"] = "[1]"
    report = DataReport()
    reader(tokenizer, skip_bad_rows=True).read("chatml", row, "f:1", report)
    assert "must be an object" in report.bad_rows[0]


def test_reasoning_that_is_not_rendered_is_warned_of(tokenizer, caplog):
    row = {"messages": [TALK["messages"][0], {**TALK["messages"][1], "reasoning_content": "hm"}]}
    with caplog.at_level(logging.WARNING, logger="erniekit"):
        reader(tokenizer).read("chatml", row, "f:1")
    assert "does not render reasoning" in caplog.text
    assert built_in("ernie45-thinking", {}).renders_reasoning
    assert not built_in("ernie45", {}).renders_reasoning
