"""The model card tells what is known of a run, and invents nothing."""

import json
from pathlib import Path

import yaml

from erniekit.export.card import RunFacts, build_card, read_run_facts


def run_folder(path: Path) -> Path:
    checkpoint = path / "checkpoint-20"
    checkpoint.mkdir(parents=True)
    settings = {"model_name_or_path": "baidu/ERNIE-4.5-0.3B-PT", "train_dataset_path": "a|b.jsonl"}
    (path / "erniekit.yaml").write_text(yaml.safe_dump(settings))
    rows = [
        {"step": 0, "eval_loss": 2.5},
        {"step": 1, "loss": 2.4},
        {"step": 10, "eval_loss": 2.25},
        {"step": 20, "eval_loss": 2.125},
        {"step": 30, "eval_loss": 1.0},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "train_log.jsonl").write_text(lines + '{"step": 31, "eval_l')
    state = {"step": 20, "total_steps": 40, "progress": {"num_tokens": 12345, "evaluations": rows[2:4:1]}}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    return checkpoint


def card(facts: RunFacts, layout: str = "hf") -> str:
    return build_card(
        facts,
        title="my-model",
        layout=layout,
        dtype="bfloat16",
        num_parameters=134_515_008,
        verified="equal.",
        has_template=True,
    )


def test_facts_of_a_run(tmp_path: Path) -> None:
    facts = read_run_facts(run_folder(tmp_path / "run"))
    assert facts.held_out() == (2.5, 2.125)
    text = card(facts)
    assert "| held-out loss before training | 2.5000 |" in text
    assert "| held-out loss of this checkpoint | 2.1250 |" in text
    assert "| optimizer steps | 20 of 40 |" in text
    assert "| trained tokens | 12,345 |" in text
    assert "| `train_dataset_path` | a\\|b.jsonl |" in text
    assert "`learning_rate`" not in text


def test_front_matter_is_yaml_with_a_hub_id_only(tmp_path: Path) -> None:
    front = yaml.safe_load(card(read_run_facts(run_folder(tmp_path / "run"))).split("---")[1])
    assert front["base_model"] == "baidu/ERNIE-4.5-0.3B-PT"
    local = RunFacts(step=1, settings={"model_name_or_path": "./models/mine"})
    assert "base_model" not in yaml.safe_load(card(local).split("---")[1])


def test_model_from_elsewhere_has_no_training_section(tmp_path: Path) -> None:
    facts = read_run_facts(tmp_path)
    assert facts == RunFacts()
    assert "## Training" not in card(facts)
    assert "134.5 million parameters, bfloat16, Hugging Face layout" in card(facts)


def test_paddle_layout_shows_its_own_readers(tmp_path: Path) -> None:
    text = card(RunFacts(), layout="paddle")
    assert "fastdeploy" in text and "AutoModelForCausalLM" not in text
