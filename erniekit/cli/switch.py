"""Several adapters on one model: which there are, and which is on."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from erniekit.errors import ConfigError

if TYPE_CHECKING:
    from erniekit.assemble import Assembled

OFF = "off"


class AdapterSwitch:
    """The adapters of a chat; the first one is on to begin with.

    Args:
        built: the model with the first adapter on it.
    """

    def __init__(self, built: "Assembled", folders: Sequence[Path]) -> None:
        self._built, self._folders = built, list(folders)
        self._on = 0 if self._folders else None

    def use(self, word: str) -> None:
        """Put an adapter on, by its number or folder, or take it `off`.

        Raises:
            ConfigError: there is no such adapter.
        """
        from erniekit import assemble

        chosen = self._find(word)
        if chosen == self._on:
            return
        if chosen is None:
            self._built = assemble.take_off(self._built)
        else:
            self._built = assemble.put_on(self._built, self._folders[chosen])
        self._on = chosen

    def lines(self) -> list[str]:
        """The adapters by number, the one that is on marked."""
        if not self._folders:
            return ["(no adapters; lora_path=FOLDER,FOLDER names some)"]
        names = [(str(number + 1), str(folder)) for number, folder in enumerate(self._folders)]
        on = OFF if self._on is None else str(self._on + 1)
        return [
            f"{'*' if key == on else ' '} {key:<3} {text}" for key, text in [*names, (OFF, "the model alone")]
        ]

    def _find(self, word: str) -> int | None:
        if word == OFF:
            return None
        names = [str(folder) for folder in self._folders]
        if word.isdigit() and 0 < int(word) <= len(names):
            return int(word) - 1
        found = [number for number, name in enumerate(names) if name == word or Path(name).name == word]
        if len(found) != 1:
            raise ConfigError(f"{word} is no adapter here; write 1 to {len(names)}, or {OFF}")
        return found[0]
