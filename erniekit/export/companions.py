"""What lies beside the weights of an export: tokenizer, chat template, generation defaults.

A model without its template is asked differently than it was trained, and one whose
generation_config.json does not name the template's end-of-turn token does not stop: both are the
commonest ways in which a good model looks bad elsewhere, so both are settled here.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from erniekit.data.template import ChatTemplate, load_template
from erniekit.data.tokenizer import Tokenizer, load_tokenizer
from erniekit.errors import CheckpointError
from erniekit.generate.ends import end_token_ids
from erniekit.generate.text import read_generation_defaults


def write_companions(
    checkpoint: Path, folder: Path, config: Any, *, copy_tokenizer: bool, chat_template: str | None
) -> bool:
    """Write everything but weights, config.json and README.md; returns whether a chat template is among it.

    Args:
        chat_template: the run's own choice of a template, over the checkpoint's.
    """
    defaults = read_generation_defaults(checkpoint)
    try:
        tokenizer = load_tokenizer(checkpoint)
    except CheckpointError as error:
        if copy_tokenizer:
            raise CheckpointError(f"{error}; write copy_tokenizer=false to export without one") from error
        write_generation_config(folder, defaults, config, None, None)
        return False
    template = load_template(tokenizer, chat_template=chat_template)
    write_generation_config(folder, defaults, config, tokenizer, template)
    if not copy_tokenizer:
        return False
    for path in tokenizer.files():
        shutil.copyfile(path, folder / path.name)
    if template is not None:
        write_template(folder, template.source)
    return template is not None


def write_generation_config(
    folder: Path,
    defaults: dict[str, Any],
    config: Any,
    tokenizer: Tokenizer | None,
    template: ChatTemplate | None,
) -> None:
    """The checkpoint's generation defaults, with every token that ends an answer."""
    ends = end_token_ids(defaults, config, tokenizer, template)
    content = {
        "bos_token_id": config.bos_token_id,
        "pad_token_id": config.pad_token_id,
        **defaults,
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
    }
    text = json.dumps(content, indent=2) + "\n"
    (folder / "generation_config.json").write_text(text, encoding="utf-8")


def write_template(folder: Path, source: str) -> None:
    """Write the template where new readers look (chat_template.jinja) and where old ones do."""
    (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content["chat_template"] = source
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
