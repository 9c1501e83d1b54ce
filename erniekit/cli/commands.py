"""The table of commands; each is one file with `run(argv) -> int`, HELP and USAGE.

The line of each command stands here too, so that `erniekit help` opens no command's file.
"""

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("erniekit.cli.train", "train a model from a configuration (SFT, PT, DPO)"),
    "plan": (
        "erniekit.cli.plan",
        "memory, communication and time of a run on several devices, before it starts",
    ),
    "eval": ("erniekit.cli.eval", "held-out loss, perplexity and token accuracy of a model or a run"),
    "export": (
        "erniekit.cli.export",
        "a finished model folder (Hugging Face or Paddle layout), compared with its source; or a GGUF file",
    ),
    "split": ("erniekit.cli.split", "the weights of a model in files of at most max_shard_size, unchanged"),
    "quantize": (
        "erniekit.cli.quantize",
        "a model in few bits (RTN, AWQ, GPTQ, CCQ; int8 to 2 bits, FP8), and what that costs",
    ),
    "chat": ("erniekit.cli.chat", "talk with a model at the terminal"),
    "generate": ("erniekit.cli.generate", "answer a prompt, or a file of prompts"),
    "config": ("erniekit.cli.config", "check a configuration, show it resolved, or print the reference"),
    "data": ("erniekit.cli.data", "look at the samples that a configuration trains on"),
    "models": ("erniekit.cli.models", "list, show or fetch models"),
    "recipes": ("erniekit.cli.recipes", "list, copy and check walkthroughs and example configurations"),
    "convert": ("erniekit.cli.convert", "convert weights between layouts; make experts of a dense model"),
    "doctor": (
        "erniekit.cli.doctor",
        "versions, devices, memory, disk and network, as a block to paste into a bug report",
    ),
    "version": ("erniekit.cli.version", "versions of ErnieKit and of what it stands on"),
    "completion": ("erniekit.cli.completion", "print shell completion for bash, zsh or fish"),
    "help": ("erniekit.cli.help", "this list, or the usage of a command"),
    "server": ("erniekit.cli.not_built", "(not built yet) serve a model over HTTP"),
    "webui": ("erniekit.cli.not_built", "(not built yet) a page to start and watch runs"),
}
NOT_BUILT = tuple(name for name, (module, _) in COMMANDS.items() if module.endswith(".not_built"))
