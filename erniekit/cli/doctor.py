"""`erniekit doctor`: what this machine and this installation are, as a block for a bug report."""

from dataclasses import dataclass, field
from typing import Any

HELP = "versions, devices, memory, disk and network, as a block to paste into a bug report"
USAGE = """usage: erniekit doctor [--offline] [--json]

Looks at Python, the installed packages and whether their versions fit, Paddle and the native kernels
(each in a process of its own; the kernels are compiled when they have not been yet), processor, memory,
disks, and which package registries and model hubs answer. Sends nothing but one request to each of
those; secrets in environment variables are not shown.

  --offline   ask no registry or hub
  --json      the same facts as one JSON object

Exit codes: 0 nothing is broken, 1 something is (it is listed under "findings")."""

# Variables that change what a run does, as prefixes or whole names.
VARIABLES = (
    "ERNIEKIT_",
    "PADDLE_",
    "FLAGS_",
    "OMP_",
    "MKL_",
    "KMP_",
    "ONEDNN_",
    "DNNL_",
    "MALLOC_",
    "CUDA_",
    "NVIDIA_",
    "NCCL_",
    "HF_",
    "AISTUDIO_",
    "MODELSCOPE_",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PYTHON",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "VIRTUAL_ENV",
    "CONDA_DEFAULT_ENV",
)
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")
_LOW_DISK = 5 * 2**30
_LOW_MEMORY = 4 * 2**30


@dataclass
class Report:
    """Facts by heading, and what is wrong (`errors`) or worth knowing (`notes`)."""

    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """The report as a block to paste."""
        lines = ["### ErnieKit doctor", ""]
        for heading, rows in self.facts.items():
            lines += [f"**{heading}**", "", *[f"- {name}: {value}" for name, value in rows.items()], ""]
        lines += ["**findings**", ""]
        lines += [f"- error: {text}" for text in self.errors] + [f"- note: {text}" for text in self.notes]
        if not self.errors and not self.notes:
            lines.append("- none")
        return "\n".join(lines)


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    import json
    from dataclasses import asdict

    from erniekit.cli.options import take_options
    from erniekit.errors import ConfigError
    from erniekit.log import console

    options, rest = take_options(argv, flags=("--offline", "--json"))
    if rest:
        raise ConfigError(f"erniekit doctor does not take {rest[0]}; it takes --offline and --json")
    report = examine(offline="--offline" in options)
    text = json.dumps(asdict(report), indent=2) if "--json" in options else report.markdown()
    console.print(text, markup=False)
    return 1 if report.errors else 0


def examine(*, offline: bool) -> Report:
    """Look at everything; the parts that may hang have their own time limits."""
    report = Report()
    given = variables()  # before launch.py adds its own
    _examine_software(report)
    _examine_packages(report)
    _examine_paddle(report)
    _examine_kernels(report)
    _examine_machine(report)
    _examine_disks(report)
    report.facts["environment variables"] = given or {"set": "none of those that matter"}
    if not offline:
        from erniekit.cli.probes import ask_services

        answers = ask_services()
        report.facts["network"] = answers
        if not any(answer.startswith("answers") for answer in answers.values()):
            report.notes.append("no registry or hub answers: only local model folders can be used")
    return report


def _examine_software(report: Report) -> None:
    import platform
    import sys
    from pathlib import Path

    import erniekit
    from erniekit.cli.machine import operating_system

    place = Path(erniekit.__file__).parent
    report.facts["software"] = {
        "erniekit": f"{erniekit.__version__} ({_commit(place) or place})",
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": operating_system(),
    }
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        report.errors.append(
            f"Python {platform.python_version()} is outside 3.10 to 3.12, which Paddle serves"
        )


def _commit(place: Any) -> str | None:
    """The commit of the clone that the package is imported from; None when it is no clone."""
    import subprocess

    if not (place.parent / ".git").exists():
        return None
    command = ["git", "-C", str(place.parent), "describe", "--always", "--dirty"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return f"commit {answer.stdout.strip()}" if answer.returncode == 0 else None


def _examine_packages(report: Report) -> None:
    """Core packages one by one; of the extras, which are complete."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in requires("erniekit") or []]
    except PackageNotFoundError:
        report.notes.append("erniekit is imported from a folder and not installed: ranges cannot be checked")
        return
    core: dict[str, str] = {}
    missing: dict[str, list[str]] = {}
    for requirement in requirements:
        extra = _extra(str(requirement.marker or ""))
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            if extra is None:
                core[requirement.name] = f"missing (wants {requirement.specifier})"
                report.errors.append(f"{requirement.name} is missing: pip install 'erniekit'")
            else:
                missing.setdefault(extra, []).append(requirement.name)
            continue
        if extra is None:
            core[requirement.name] = installed
        else:
            missing.setdefault(extra, [])
        if not requirement.specifier.contains(installed, prereleases=True):
            wanted = f"{requirement.name}{requirement.specifier}"
            report.errors.append(
                f"{requirement.name} {installed} is outside {wanted}: pip install '{wanted}'"
            )
    report.facts["packages"] = core
    report.facts["extras"] = {
        name: "installed" if not lacks else f"not installed (lacks {', '.join(lacks)})"
        for name, lacks in missing.items()
    }


def _extra(marker: str) -> str | None:
    """The extra's name in a marker such as `extra == "cpu"`."""
    return marker.partition("extra ==")[2].strip().strip("\"'") or None


def _examine_paddle(report: Report) -> None:
    from importlib.util import find_spec

    from erniekit.cli.launch import prepare_environment
    from erniekit.cli.probes import paddle_facts

    if find_spec("paddle") is None:
        report.facts["paddle"] = {"paddle": "not installed"}
        report.notes.append("training and generation need Paddle: pip install 'erniekit[cpu]'")
        return
    prepare_environment()
    facts = paddle_facts()
    report.facts["paddle"] = {name.replace("_", " "): str(value) for name, value in facts.items()}
    if "error" in facts:
        report.errors.append(f"Paddle is installed but cannot be used: {facts['error']}")


def _examine_kernels(report: Report) -> None:
    from erniekit.cli.probes import kernel_facts

    facts = kernel_facts()
    report.facts["kernels"] = {name: str(value) for name, value in facts.items()}
    told = str(facts.get("native kernels", ""))
    if "error" in facts:
        report.errors.append(f"the process that loads the native kernels failed: {facts['error']}")
    elif told.startswith("do not run"):
        report.notes.append(f"kernels: Paddle's own operators are several times slower. Native ones {told}")


def _examine_machine(report: Report) -> None:
    from erniekit.cli import machine

    model, instruction_sets = machine.processor()
    present, usable = machine.cores()
    total, available = machine.memory()
    cards = machine.graphics_cards()
    report.facts["machine"] = {
        "processor": model,
        "cores": f"{usable:g} usable of {present}",
        "instruction sets": " ".join(instruction_sets) or "none of those looked for",
        "memory": f"{total / 2**30:.1f} GiB, {available / 2**30:.1f} GiB free",
        "graphics cards": "; ".join(cards) or "none found",
    }
    if 0 < available < _LOW_MEMORY:
        report.notes.append(
            f"{available / 2**30:.1f} GiB of memory are free; fine-tuning the starter takes about 4 GiB"
        )


def _examine_disks(report: Report) -> None:
    import os
    from pathlib import Path

    from erniekit.checkpoint.starter import cache_folder
    from erniekit.cli.machine import free_disk

    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    places = {"working directory": Path.cwd(), "model cache": cache_folder(), "Hugging Face cache": hub}
    free = {name: free_disk(place) for name, place in places.items()}
    report.facts["disk"] = {
        name: f"{free[name] / 2**30:.1f} GiB free ({place})" for name, place in places.items()
    }
    for name, size in free.items():
        if size < _LOW_DISK:
            report.notes.append(f"{name}: {size / 2**30:.1f} GiB are free; checkpoints may not fit")


def variables() -> dict[str, str]:
    """Environment variables that change what a run does; secrets are not shown."""
    import os

    from erniekit.cli.probes import without_credentials

    shown = {}
    for name, value in sorted(os.environ.items()):
        if name.upper().startswith(VARIABLES):
            secret = any(word in name.upper() for word in _SECRET)
            shown[name] = "(set, not shown)" if secret else without_credentials(value)
    return shown
