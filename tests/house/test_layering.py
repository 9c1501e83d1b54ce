"""Imports point down: the levels of the rooms, as the architecture page gives them."""

import re

from tests.house.sources import PACKAGE, Source, package_sources

# Room -> the rooms it may import besides itself. `errors` and `log` may be imported by all.
BOTTOM = {"errors", "log"}
FIRST = {"config", "ops", "data", "checkpoint"}
SECOND = {"nn", "losses", "optim"}
THIRD = {"models", "adapters", "quant", "parallel", "generate"}
FOURTH = {"estimate", "low_precision", "assemble", "testing"}
FIFTH = {"train", "export", "serve"}
WITHOUT_CONFIG = (FIRST - {"config"}) | SECOND

ALLOWED: dict[str, set[str]] = {
    "": set(),
    "errors": set(),
    "log": set(),
    **dict.fromkeys(FIRST, set()),
    **dict.fromkeys(SECOND, {"ops"}),
    **dict.fromkeys(THIRD, WITHOUT_CONFIG),
    "estimate": FIRST | SECOND | THIRD,
    "low_precision": FIRST | SECOND | THIRD,
    "assemble": FIRST | SECOND | THIRD | {"estimate", "low_precision"},
    "testing": FIRST | SECOND | THIRD | {"estimate", "assemble"},
    **dict.fromkeys(FIFTH, FIRST | SECOND | THIRD | FOURTH),
    **dict.fromkeys(("cli", "__main__"), FIRST | SECOND | THIRD | FOURTH | FIFTH | {"cli"}),
}


def imported_rooms(source: Source) -> list[tuple[int, str]]:
    """(line, room) of every import of our own package; the package itself is the room `""`."""
    found = []
    for line, module in source.imports():
        parts = module.split(".")
        if parts[0] == "erniekit":
            is_room = len(parts) > 1 and (
                (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file()
            )
            found.append((line, parts[1] if is_room else ""))
    return found


def test_every_room_has_a_level() -> None:
    rooms = {source.room for source in package_sources()}
    assert rooms - set(ALLOWED) == set()
    assert len(rooms) >= 14


def test_imports_point_down() -> None:
    wrong, num_imports = [], 0
    for source in package_sources():
        for line, room in imported_rooms(source):
            num_imports += 1
            if room not in {source.room, "", *BOTTOM, *ALLOWED[source.room]}:
                wrong.append(f"{source.name}:{line} imports {room}")
    assert wrong == []
    assert num_imports > 100


def test_the_rule_itself_notices_a_wrong_import(tmp_path) -> None:
    path = PACKAGE / "ops" / "imaginary.py"
    source = Source(path)
    source.__dict__["text"] = (
        "def f():\n    from erniekit.models.registry import MODELS\n    import erniekit.cli\n"
    )
    assert imported_rooms(source) == [(2, "models"), (3, "cli")]
    assert "models" not in ALLOWED[source.room]


def test_upward_imports_of_the_top_are_lazy() -> None:
    """The package's own file imports nothing of ErnieKit when it is imported."""
    top = next(source for source in package_sources() if source.module == "erniekit")
    assert imported_rooms(top) == []


NAMED = re.compile(r"^erniekit(\.\w+)+:\w+$")


def test_names_in_registries_exist() -> None:
    """Tables name functions as `module:function`; every one of them is there."""
    import ast

    by_module = {source.module: source for source in package_sources()}
    missing, num_names = [], 0
    for source in package_sources():
        for node in ast.walk(source.tree):
            if not (
                isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMED.match(node.value)
            ):
                continue
            num_names += 1
            module, _, name = node.value.partition(":")
            if module not in by_module or name not in _defined(by_module[module].tree):
                missing.append(f"{source.name}:{node.lineno} names {node.value}")
    assert missing == []
    assert num_names >= 20


def _defined(tree) -> set[str]:
    import ast

    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names
