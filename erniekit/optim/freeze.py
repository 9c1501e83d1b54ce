"""Parameters that are not trained, chosen by their names."""

import re
from collections.abc import Sequence
from typing import Any

from erniekit.errors import ConfigError
from erniekit.log import logger


def apply_freeze(model: Any, freeze: Sequence[str], spread: Any = None) -> list[str]:
    """Stop the gradients of every parameter whose name one of the regular expressions finds.

    Args:
        spread: how the model lies over several processes, of which each may have other parameters.

    Returns:
        The names of the frozen parameters, wherever they are.
    """
    is_trained = {name: not parameter.stop_gradient for name, parameter in model.named_parameters()}
    if spread is not None:
        is_trained = spread.of_all_stages(is_trained)
    names = list(is_trained)
    frozen: set[str] = set()
    for pattern in freeze:
        try:
            found = [name for name in names if re.search(pattern, name)]
        except re.error as error:
            raise ConfigError(f"freeze: {pattern!r} is not a regular expression ({error})") from error
        if not found:
            examples = ", ".join(names[:3])
            raise ConfigError(
                f"freeze: {pattern!r} matches no parameter; names look like {examples}, {names[-1]}"
            )
        frozen.update(found)
    if not any(trained and name not in frozen for name, trained in is_trained.items()):
        raise ConfigError(f"freeze: {list(freeze)} freezes every parameter; nothing would be trained")
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.stop_gradient = True
    if frozen:
        logger.info(f"frozen: {len(frozen)} of {len(names)} tensors ({', '.join(sorted(frozen)[:3])}, ...)")
    return sorted(frozen)
