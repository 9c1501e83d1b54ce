"""ErnieKit: a PaddlePaddle-native training framework for the ERNIE 4.5 family.

Importing this package is cheap and never imports Paddle; the public names below are
resolved on first use.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "load_config": "erniekit.config.load:load_config",
    "ErnieKitError": "erniekit.errors:ErnieKitError",
    "ConfigError": "erniekit.errors:ConfigError",
    "DataError": "erniekit.errors:DataError",
    "CheckpointError": "erniekit.errors:CheckpointError",
    "UnsupportedError": "erniekit.errors:UnsupportedError",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'erniekit' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(import_module(module), attribute)
