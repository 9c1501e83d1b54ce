"""Names, sizes and habits of the source files."""

import ast
import re

from setuptools import find_packages

from tests.house.sources import PACKAGE, ROOT, Source, package_sources

FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "base", "manager"}
MOST_LINES = 500
MOST_FUNCTION_LINES = 80
MOST_LEFT_TO_DO = 0
LEFT_TO_DO = ("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK")

# Files whose test stands under another name, with the place where they are tested.
TESTED_ELSEWHERE = {
    "erniekit/__init__.py": "tests/house/test_light_imports.py",
    "erniekit/__main__.py": "tests/cli",
    # Layers have no behaviour of their own: the model contract and the golden numbers run through them.
    **{
        f"erniekit/nn/{layer}.py": "tests/models/test_ernie45.py"
        for layer in ("attention", "cache", "embedding", "linear", "mlp", "norm")
    },
    # Each version of an operator is compared with its reference in one place, the references with numpy.
    **{
        f"erniekit/ops/{operator}.py": "tests/ops/test_pointwise.py"
        for operator in ("dropout", "linear", "norm", "rope", "swiglu")
    },
    "erniekit/ops/attention_cpu.py": "tests/ops/test_backend.py",
    "erniekit/ops/cross_entropy.py": "tests/losses/test_cross_entropy.py",
    "erniekit/ops/embedding.py": "tests/ops/native/test_embedding.py",
    "erniekit/ops/gradients.py": "tests/ops/native/test_linear.py",
    "erniekit/ops/remake.py": "tests/ops/native/test_linear.py",
    "erniekit/ops/native/matmul.py": "tests/ops/native/test_linear.py",
    "erniekit/optim/groups.py": "tests/optim/test_adamw.py",
    "erniekit/testing/model_contract.py": "tests/models/test_ernie45.py",
    "erniekit/testing/tiny_run.py": "tests/train/test_trainer_resume.py",
    # Each transport runs the same collectives in real processes; NCCL's needs GPUs.
    **{
        f"erniekit/parallel/transport/{transport}.py": "tests/parallel/test_comm.py"
        for transport in ("shared_memory", "gloo", "nccl")
    },
    "erniekit/optim/build.py": "tests/optim/test_adamw.py",
    "erniekit/optim/update.py": "tests/optim/test_plain.py",
    "erniekit/data/reader.py": "tests/data/test_pipeline.py",
    "erniekit/data/report.py": "tests/data/test_pipeline.py",
    "erniekit/data/sample.py": "tests/data/test_pack.py",
    "erniekit/train/objectives.py": "tests/train/test_sft.py",
    "erniekit/train/finish.py": "tests/train/test_session.py",
    "erniekit/train/start_screen.py": "tests/cli/test_train.py",
    "erniekit/cli/data.py": "tests/cli/test_train.py",
    # The sections of the configuration are tables; one parametrised test covers them all.
    **{
        f"erniekit/config/{section}.py": "tests/config/test_config.py"
        for section in (
            *("run", "model", "lora", "train_data", "eval_data", "sequences", "batch", "optimizer"),
            *(
                "routing",
                "schedule",
                "evaluation",
                "saving",
                "reporting",
                "generation",
                "export",
                "preference",
                "parallel",
                "quantize",
                "pipelining",
            ),
        )
    },
}


def everything() -> list[Source]:
    """The package, its tests and everything else that is Python here."""
    others = [*sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]
    return [*package_sources(), *[Source(path) for path in [*others, ROOT / "setup.py"]]]


def test_no_file_is_named_after_nothing() -> None:
    sources = everything()
    assert len(sources) > 100
    wrong = [source.name for source in sources if source.path.stem in FORBIDDEN_NAMES]
    wrong += [source.name for source in sources if set(source.path.parts) & FORBIDDEN_NAMES]
    assert wrong == []


def test_every_room_is_packaged() -> None:
    """A folder without `__init__.py` works in a clone and is missing from an installed package."""
    packages = set(find_packages(str(ROOT), include=["erniekit", "erniekit.*"]))
    folders = {
        source.module if source.path.name == "__init__.py" else source.module.rpartition(".")[0]
        for source in package_sources()
    }
    assert folders - packages == set()
    assert len(packages) >= 14


def test_data_files_are_packaged() -> None:
    setup = (ROOT / "setup.py").read_text("utf-8")
    declared = re.search(r"package_data=\{\s*\"erniekit\": \[(.*?)\]", setup, re.DOTALL)
    assert declared is not None
    suffixes = set(re.findall(r"\*(\.\w+)", declared[1]))
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.suffix for path in files} - suffixes <= {".py"}
    assert len(files) > 100


def test_every_file_says_why_it_exists() -> None:
    silent = [s.name for s in package_sources() if s.text.strip() and not ast.get_docstring(s.tree)]
    assert silent == []


def test_files_and_functions_stay_readable() -> None:
    long_files = [s.name for s in package_sources() if len(s.text.splitlines()) > MOST_LINES]
    long_functions = [
        f"{source.name}:{node.lineno} {node.name}"
        for source in package_sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= MOST_FUNCTION_LINES
    ]
    assert long_files == []
    assert long_functions == []


def test_sources_are_ascii() -> None:
    """Tests may hold other scripts, as data; the package writes them as escapes."""
    wrong = [source.name for source in package_sources() if not source.text.isascii()]
    assert wrong == []


def test_nothing_prints() -> None:
    """`erniekit.log` is the one way to people (logger) and to results (console)."""
    wrong = [
        f"{source.name}:{node.lineno}"
        for source in package_sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert wrong == []


def _swallows(handler: ast.ExceptHandler) -> bool:
    """Whether a handler catches everything, and neither raises again nor keeps the error for later."""
    caught = handler.type
    names = [caught] if not isinstance(caught, ast.Tuple) else caught.elts
    broad = caught is None or any(
        isinstance(name, ast.Name) and name.id in ("Exception", "BaseException") for name in names
    )
    inside = list(ast.walk(handler))
    raised = any(isinstance(node, ast.Raise) for node in inside)
    # Kept to be raised elsewhere, as a thread has to do.
    kept = any(
        isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id == handler.name
        for node in inside
    )
    return broad and not (raised or kept)


def test_no_exception_is_swallowed() -> None:
    wrong = [
        f"{source.name}:{node.lineno}"
        for source in everything()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ExceptHandler) and _swallows(node)
    ]
    assert wrong == []


def test_the_rule_on_exceptions_notices() -> None:
    broad = "try:\n    f()\nexcept Exception:\n    pass\n"
    handler = next(node for node in ast.walk(ast.parse(broad)) if isinstance(node, ast.ExceptHandler))
    assert _swallows(handler)
    again = ast.parse(broad.replace("pass", "raise"))
    assert not _swallows(next(node for node in ast.walk(again) if isinstance(node, ast.ExceptHandler)))


def test_what_is_left_to_do_is_counted() -> None:
    found = [
        f"{source.name}:{number}"
        for source in everything()
        for number, line in enumerate(source.text.splitlines(), 1)
        if re.search(rf"#.*\b({'|'.join(LEFT_TO_DO)})\b", line)
    ]
    assert len(found) <= MOST_LEFT_TO_DO, found


def test_places_of_other_tests_exist() -> None:
    gone = [place for place in TESTED_ELSEWHERE.values() if not (ROOT / place).exists()]
    gone += [name for name in TESTED_ELSEWHERE if not (ROOT / name).is_file()]
    assert gone == []


def test_tests_mirror_the_package() -> None:
    """`erniekit/room/file.py` is tested by `tests/room/test_file.py`, or a file whose name starts so."""
    lacking = []
    for source in package_sources():
        if source.path.name == "__init__.py" or source.name in TESTED_ELSEWHERE:
            continue
        below = source.path.relative_to(ROOT / "erniekit")
        folder = ROOT / "tests" / below.parent
        # models/ernie45/x.py may be tested by tests/models/test_ernie45_*.py.
        stems = [folder / f"test_{below.stem}*.py"]
        if len(below.parts) > 2:
            stems.append(ROOT / "tests" / below.parts[0] / f"test_{below.parts[1]}*.py")
        if not any(list(stem.parent.glob(stem.name)) for stem in stems):
            lacking.append(source.name)
    assert lacking == []
