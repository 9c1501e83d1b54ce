"""`erniekit version`: the versions that a bug report needs first."""

HELP = "versions of ErnieKit and of what it stands on"
USAGE = """usage: erniekit version

Prints the versions of ErnieKit, Python and Paddle (without importing Paddle)."""


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from erniekit import __version__
    from erniekit.errors import ConfigError
    from erniekit.log import console

    if argv:
        raise ConfigError(f"erniekit version takes no words, and {argv[0]} was given")
    console.print(f"erniekit {__version__}")
    console.print(f"python {platform.python_version()}")
    for package in ("paddlepaddle-gpu", "paddlepaddle"):
        try:
            console.print(f"{package} {version(package)}")
            break
        except PackageNotFoundError:
            continue
    else:
        console.print("paddlepaddle is not installed")
    return 0
