"""Secrets: the value of a key with such a name is never shown and never saved."""

import re
from typing import Any

HIDDEN = "***"
_SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
# Of the keys that ErnieKit knows only those that end so are secrets: most are about tokens of text.
_KNOWN_SECRET = re.compile(r"(_key|_secret|password|auth_token|hub_token|api_token)$")
# A secret under a misspelt name is one as well.
_WORDS = ("token", "secret", "password", "apikey")
_NO_SECRET = re.compile(r"tokeni[sz]er", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether the value of a key, or of an environment variable, must not be shown."""
    from erniekit.config.aliases import ALIASES  # entries, which aliases are made of, need this file
    from erniekit.config.keys import declared_keys, upstream_keys
    from erniekit.config.suggest import edit_distance

    if name in declared_keys() or name in upstream_keys() or name in ALIASES:
        return _KNOWN_SECRET.search(name) is not None
    if _SECRET.search(_NO_SECRET.sub("", name)):
        return True
    words = re.split(r"[^a-z]+", name.lower())
    return any(edit_distance(word, secret, 1) <= 1 for word in words for secret in _WORDS)


def masked(key: str, value: Any) -> Any:
    """`value` with HIDDEN for it, or for what it holds under names of secrets."""
    if is_secret(key):
        return HIDDEN
    if isinstance(value, dict):
        return {inner: masked(str(inner), part) for inner, part in value.items()}
    if isinstance(value, list | tuple):
        return [masked("", part) for part in value]
    return value
