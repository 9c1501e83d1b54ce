"""The generated parts of the documents; `python -m tests.house.readme` (make docs) rewrites them."""

import contextlib
import io
import re
import sys
from pathlib import Path

from erniekit.cli.commands import COMMANDS
from tests.house.figures import PAGES, with_figures
from tests.house.sources import ROOT

MARKED = re.compile(r"(<!-- commands: [^>]*-->\n)(.*?)(<!-- /commands -->)", re.DOTALL)

PUBLISHED = re.compile(r"(<!-- published -->\n).*?(<!-- /published -->)", re.DOTALL)


def commands_table() -> str:
    """The table of commands, from the table that the command line itself uses."""
    rows = [f"| `{name}` | {line} |" for name, (_, line) in COMMANDS.items()]
    return "\n".join(["| command | |", "|---|---|", *rows]) + "\n"


def readme() -> str:
    """README.md as it has to be."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert MARKED.search(text), "README.md has lost its marks for the table of commands"
    return MARKED.sub(lambda match: match[1] + commands_table() + match[3], text)


def reference() -> str:
    """docs/configuration.md as `erniekit config reference` writes it."""
    from erniekit.cli.config import run

    page = io.StringIO()
    with contextlib.redirect_stdout(page):
        assert run(["reference"]) == 0
    return page.getvalue()


def plans() -> str:
    """docs/parallel.md with the table that `erniekit plan published` prints."""
    from erniekit.cli.plan import run

    table = io.StringIO()
    with contextlib.redirect_stdout(table):
        assert run(["published"]) == 0
    text = (ROOT / "docs/parallel.md").read_text(encoding="utf-8")
    assert PUBLISHED.search(text), "docs/parallel.md has lost its marks for the table"
    return PUBLISHED.sub(lambda match: match[1] + table.getvalue() + match[2], text)


def pages() -> dict[Path, str]:
    """Every page with a generated part, as it has to be."""
    return {
        ROOT / "README.md": readme(),
        ROOT / "docs/configuration.md": reference(),
        ROOT / "docs/parallel.md": plans(),
        **{ROOT / page: with_figures((ROOT / page).read_text(encoding="utf-8")) for page in PAGES},
    }


def main() -> int:
    """Rewrite the pages that differ."""
    for path, text in pages().items():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"rewrote {path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
