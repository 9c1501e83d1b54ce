"""Places read as people and editors expect them."""

from erniekit.config.entries import COMMAND_LINE, DEFAULT, Entry, Problem, Source


def test_a_source_is_file_line_column_or_a_word() -> None:
    assert str(Source("run.yaml", 3, 1)) == "run.yaml:3:1"
    assert str(Source(COMMAND_LINE)) == "command line"
    assert str(Source(DEFAULT)) == "default"
    assert str(Problem(Source("run.yaml", 3, 1), "seed: wrong")) == "run.yaml:3:1: seed: wrong"


def test_values_are_shown_as_written_and_long_ones_are_cut() -> None:
    source = Source(DEFAULT)
    assert Entry("learning_rate", 1e-05, "1.0e-5", source).shown() == "1.0e-5"
    assert Entry("stop", ["a"], None, source).shown() == "['a']"
    assert len(Entry("stop", ["a" * 100], None, source).shown()) == 60
