"""`erniekit recipes`: walkthroughs and example configurations, also without a clone at hand.

They stand at the top of the repository; an installed package carries a copy (setup.py puts it
there), so that `pip install` users have them too. A copy keeps the repository's layout, because
the commands and paths in a recipe are then the same in both places.
"""

from pathlib import Path

from erniekit.errors import ConfigError

HELP = "list, copy and check walkthroughs and example configurations"
USAGE = """usage: erniekit recipes list
       erniekit recipes copy NAME|all|examples [FOLDER]
       erniekit recipes check FOLDER

list    the recipes, and the example configurations by model
copy    recipes/NAME and the examples (configurations and data) into FOLDER, here when not given;
        a file that is there and differs stops the copy before anything is written
check   compare what a finished recipe left behind with its expected.json

  erniekit recipes copy 00-quickstart my-folder
  cd my-folder && sh recipes/00-quickstart/run.sh

Exit codes: 0 done, 1 a figure of check is out of its range, 2 the input is wrong."""

_EXAMPLES = "examples"
_LEFT_BEHIND = ("output", "outputs", "__pycache__")


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    match argv:
        case ["list"]:
            return _list()
        case ["copy", name]:
            return _copy(name, Path("."))
        case ["copy", name, folder]:
            return _copy(name, Path(folder))
        case ["check", folder]:
            return _check(Path(folder))
    raise ConfigError("write erniekit recipes list, copy NAME [FOLDER], or check FOLDER")


def bundle() -> Path:
    """The folder that holds `recipes` and `examples`: the clone, or the installed package's copy."""
    import erniekit

    package = Path(erniekit.__file__).parent
    for place in (package / "_bundled", package.parent):
        if (place / "recipes").is_dir() and (place / _EXAMPLES).is_dir():
            return place
    raise ConfigError(f"this installation has no recipes (looked beside and in {package}); install it anew")


def recipe_names(root: Path) -> list[str]:
    """Names of the recipes, in their order."""
    return sorted(folder.name for folder in (root / "recipes").iterdir() if (folder / "run.sh").is_file())


def title(readme: Path) -> str:
    """The heading of a README, without the mark."""
    return readme.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").strip()


def _list() -> int:
    from erniekit.log import console

    root = bundle()
    lines = [f"recipes and examples in {root}", ""]
    lines += [f"  {name:<16} {title(root / 'recipes' / name / 'README.md')}" for name in recipe_names(root)]
    configs = root / _EXAMPLES / "configs"
    for model in sorted(folder for folder in configs.iterdir() if folder.is_dir()):
        lines += ["", f"  {model.relative_to(root)}"]
        lines += [f"    {path.relative_to(model)}" for path in sorted(model.rglob("*.yaml"))]
    lines += ["", "erniekit recipes copy NAME [FOLDER] copies a recipe with the examples"]
    console.print("\n".join(lines), markup=False)
    return 0


def _copy(name: str, folder: Path) -> int:
    from erniekit.log import console

    root = bundle()
    parts = [_EXAMPLES]
    if name == "all":
        parts += [f"recipes/{recipe}" for recipe in recipe_names(root)]
    elif name != _EXAMPLES:
        parts.append(f"recipes/{_named(name, root)}")
    files = [file for part in parts for file in _files(root / part)]
    targets = {file: folder / file.relative_to(root) for file in files}
    different = [target for file, target in targets.items() if _differs(file, target)]
    if different:
        listing = "\n".join(f"  {path}" for path in different[:10])
        raise ConfigError(f"these exist and differ; nothing was copied:\n{listing}\nname another folder")
    for file, target in targets.items():
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
            target.chmod(file.stat().st_mode & 0o777 | 0o200)
    console.print(f"copied {', '.join(parts)} to {folder}", markup=False)
    return 0


def _named(name: str, root: Path) -> str:
    """A recipe by its name, or by its name without the number."""
    from difflib import get_close_matches

    names = recipe_names(root)
    known = {recipe: recipe for recipe in names} | {recipe.partition("-")[2]: recipe for recipe in names}
    if name in known:
        return known[name]
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {known[close[0]]}? " if close else ""
    raise ConfigError(f"there is no recipe {name}; {hint}There are: {', '.join(names)}, all, {_EXAMPLES}")


def _files(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not set(path.relative_to(folder).parts) & set(_LEFT_BEHIND)
    ]


def _differs(file: Path, target: Path) -> bool:
    return target.exists() and (not target.is_file() or target.read_bytes() != file.read_bytes())


def _check(folder: Path) -> int:
    from erniekit.cli.expectations import check_recipe
    from erniekit.log import console

    outcomes = check_recipe(folder)
    for outcome in outcomes:
        console.print(str(outcome), markup=False)
    failed = sum(not outcome.holds for outcome in outcomes)
    summary = "all hold" if not failed else f"{failed} of {len(outcomes)} DO NOT HOLD"
    console.print(f"{len(outcomes)} expectations: {summary}", markup=False)
    return 1 if failed else 0
