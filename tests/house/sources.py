"""What the house tests look at: every file of the package as text and as syntax tree."""

import ast
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "erniekit"


@dataclass(frozen=True)
class Source:
    """A Python file of the repository."""

    path: Path

    @property
    def name(self) -> str:
        """Path below the repository, with forward slashes."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def module(self) -> str:
        """Dotted name, such as `erniekit.data.pack`."""
        return self.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def room(self) -> str:
        """The folder (or file) below the package: `data`, `errors`; empty for the package itself."""
        parts = self.module.split(".")
        return parts[1] if len(parts) > 1 else ""

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=str(self.path))

    def imports(self) -> list[tuple[int, str]]:
        """(line, module) of every import anywhere in the file, those of ErnieKit by their full name."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(node.lineno, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name}:{node.lineno}: relative import"
                base = node.module or ""
                # `from erniekit import assemble` imports a room, `from erniekit.log import logger` a name.
                names = [f"{base}.{alias.name}" for alias in node.names] if base == "erniekit" else [base]
                found += [(node.lineno, name) for name in names]
        return found


def package_sources() -> list[Source]:
    """Every file of the package, in a stable order."""
    return [Source(path) for path in sorted(PACKAGE.rglob("*.py")) if "_bundled" not in path.parts]
