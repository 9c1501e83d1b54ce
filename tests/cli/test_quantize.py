"""`erniekit quantize`: what it prints, its exit code, and what it refuses."""

import pytest

from erniekit.cli.main import main
from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint
from tests.quant.folders import write_texts


@pytest.fixture
def run(tmp_path, capsys):
    """The command on a tiny model: exit code, standard output and error."""
    folder, texts = write_tiny_checkpoint(tmp_path / "model"), write_texts(tmp_path)

    def command(*words):
        given = [
            *(f"model_name_or_path={folder}", "stage=PT", f"train_dataset_path={texts}", "max_seq_len=64"),
            *("num_calibration_tokens=300", f"output_dir={tmp_path / 'out'}", "compute_type=fp32", *words),
        ]
        code = main(["quantize", *given])
        out = capsys.readouterr()
        return code, " ".join(out.out.split()), out.err

    command.texts = texts
    return command


def test_it_tells_what_it_made(run, tmp_path):
    code, out, _ = run("quant_scheme=wint8", "quant_method=rtn", f"eval_dataset_path={run.texts}")
    assert code == 0 and "wint8 by rtn, with clipping" in out and "held-out perplexity" in out
    assert (tmp_path / "out/quantized/report.md").exists()


def test_too_much_lost_is_a_failure(run, tmp_path):
    words = ("quant_scheme=int2", "quant_method=rtn", f"eval_dataset_path={run.texts}")
    code, out, _ = run(*words, "max_quality_drop=1e-9", "clip_search=false", "seed=3")
    report = (tmp_path / "out/quantized/report.md").read_text()
    assert ("FAILED" in out) == (code == 1) == ("FAILED" in report)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compute_type=wint8"], "compute_type: wint8 rounds weights while a model is used"),
        (["stage=DPO"], "stage: DPO reads pairs of answers"),
        (["max_quality_drop=0.1"], "max_quality_drop: 0.1 needs held-out text"),
        (["smooth_alpha=0.5", "quant_method=awq"], "both choose how inputs are scaled"),
        (["target_bits=4", "quant_scheme=w8a8"], "target_bits mixes formats of weights alone"),
        (["quant_layout=compressed-tensors", "quant_scheme=nf4"], "no form for quant_scheme: nf4"),
        (["quant_layout=compressed-tensors", "target_bits=4"], "target_bits: 4 has no form"),
        (["rotation_block_size=24"], "write a power of two, or 0"),
        (["quant_scheme=wint3"], "wint3"),
    ],
)
def test_what_does_not_go_together(run, words, message):
    code, _, err = run(*words)
    assert code != 0 and message in " ".join(err.split())
