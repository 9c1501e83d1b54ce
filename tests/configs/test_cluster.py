"""Job files for clusters: what they set is what the launcher reads. No cluster is there to execute them."""

import subprocess
from typing import Any

import pytest
import yaml

from erniekit.cli import launch
from tests.house.sources import ROOT

FOLDER = ROOT / "examples" / "cluster"


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_kubernetes(empty: pytest.MonkeyPatch) -> None:
    service, job = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8"))
    pods: dict[str, Any] = job["spec"]["template"]["spec"]
    (container,) = pods["containers"]
    given = {entry["name"]: entry for entry in container["env"]}
    assert set(given) == {"NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"}
    count = job["spec"]["completions"]
    assert int(given["NNODES"]["value"]) == count == job["spec"]["parallelism"]
    name = service["metadata"]["name"]
    assert pods["subdomain"] == name and service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert given["MASTER_ADDR"]["value"] == f"{job['metadata']['name']}-0.{name}"
    for variable in ("NNODES", "MASTER_ADDR", "MASTER_PORT"):
        empty.setenv(variable, given[variable]["value"])
    empty.setenv("NODE_RANK", "3")
    assert launch.this_node() == launch.Node(3, 12, "erniekit-0.erniekit:29500")
    assert container["command"][:2] == ["erniekit", "train"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        each["name"] for each in pods["volumes"]
    }


def test_slurm() -> None:
    script = FOLDER / "train.slurm"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    text = script.read_text(encoding="utf-8")
    assert "--ntasks-per-node=1" in text and "--signal=TERM@" in text
    assert "export MASTER_ADDR MASTER_PORT" in text
