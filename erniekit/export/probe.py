"""What two models are asked when their logits are compared: sentences, code and a conversation.

Pseudo-random tokens would ask for what neither model was made for. The sentences are in
`probe_texts.txt`, one a line, in several languages; where the checkpoint has a chat template, the
first of them become a conversation too.
"""

from pathlib import Path

import numpy as np

from erniekit.data.template import load_template
from erniekit.data.tokenizer import load_tokenizer
from erniekit.errors import CheckpointError, DataError
from erniekit.log import logger

# Tokens of a text that are compared: logits of all of them are in memory twice.
_LONGEST = 32


def probe_texts() -> list[str]:
    """The sentences."""
    text = Path(__file__).with_name("probe_texts.txt").read_text(encoding="utf-8")
    return [line.replace("\\n", "\n") for line in text.splitlines()]


def probe_rows(folder: Path, vocab_size: int, *, chat_template: str | None) -> list[list[int]]:
    """Tokens of every text; for a folder without a tokenizer pseudo-random ones.

    Args:
        folder: with the tokenizer and its template.
        chat_template: the run's own choice of a template, over the folder's.
    """
    texts = probe_texts()
    try:
        tokenizer = load_tokenizer(folder)
        template = load_template(tokenizer, chat_template=chat_template)
        if template is not None:
            question, _, answer = texts[1].partition("? ")
            asked, said = (
                {"role": "user", "content": f"{question}?"},
                {"role": "assistant", "content": answer},
            )
            texts.append(template.render([asked, said]))
    except CheckpointError:  # no tokenizer
        return _drawn(vocab_size)
    except DataError as error:
        logger.warning(f"the chat template is left out of the comparison: {error}")
    # The end of a text: the preface that a template may have would leave the conversation out.
    rows = [[token for token in tokenizer.encode(text)[-_LONGEST:] if token < vocab_size] for text in texts]
    return [row for row in rows if row] or _drawn(vocab_size)


def _drawn(vocab_size: int) -> list[list[int]]:
    drawn: list[list[int]] = np.random.default_rng(0).integers(0, vocab_size, size=(2, _LONGEST)).tolist()
    return drawn
