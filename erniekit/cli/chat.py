"""`erniekit chat`: talk with a model at the terminal."""

HELP = "talk with a model at the terminal"
USAGE = """usage: erniekit chat MODEL|CONFIG [--prompt TEXT] [--system TEXT] [--tools FILE] [key=value ...]

MODEL is a model folder, a training output folder (its best, else latest checkpoint), starter, or a
hub id. CONFIG is a YAML or JSON file: the checkpoint in its output_dir if there is one, otherwise
its model_name_or_path (model_name_or_path=... on the command line always wins).

An adapter (a run with fine_tuning: LoRA, or one from elsewhere) is used unmerged, on the model that it was
trained on; lora_path=A,B puts several at hand, between which /adapter switches.

  --prompt TEXT   answer this one question and leave (- reads it from standard input)
  --system TEXT   the system message
  --tools FILE    definitions of tools that the model may call: a JSON list, as `tools` of training data

  erniekit chat starter
  erniekit chat ./output
  erniekit chat run.yaml temperature=0.2 max_new_tokens=200
  erniekit chat starter lora_path=./output
  erniekit chat ./output --tools tools.json
  erniekit chat ./output --prompt "What is the capital of France?" temperature=0

A call of a tool is shown as JSON, and /tool TEXT gives its result to the model; nothing is executed.

In the chat: /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."""


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    import sys
    from dataclasses import asdict
    from pathlib import Path

    from erniekit.cli.launch import require_paddle
    from erniekit.cli.options import take_options
    from erniekit.cli.target import choose_target, open_generator
    from erniekit.data.tool_calls import read_tools

    options, words = take_options(argv, valued=("--prompt", "--system", "--tools"))
    tools = read_tools(Path(options["--tools"])) if "--tools" in options else None
    require_paddle()
    target = choose_target(words, "chat")

    from erniekit.cli.repl import Repl
    from erniekit.generate.conversation import Conversation
    from erniekit.generate.sampler import build_sampling
    from erniekit.log import logger

    sampling = build_sampling(target.generation_defaults(), **asdict(target.config.generation))
    logger.info(f"model: {target.description}")
    generator = open_generator(target)
    if tools and generator.template is not None and not generator.template.renders_tools:
        logger.warning(
            f"the chat template of {generator.template.name} does not render tools: the model will not see "
            "their definitions (chat_template: ernie45-thinking does)"
        )
    conversation = Conversation(options.get("--system"), tools)
    repl = Repl(generator, sampling, conversation, _read, _write, _write_dim)
    if "--prompt" in options:
        prompt = options["--prompt"]
        repl.conversation.ask(sys.stdin.read() if prompt == "-" else prompt)
        repl.answer_last()
        return 0
    repl.loop()
    return 0


def _read(prompt: str) -> str:
    """A line from the terminal, with editing and history where the system has readline."""
    import contextlib
    import sys

    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")
    with contextlib.suppress(ModuleNotFoundError):
        import readline  # noqa: F401  (importing it is what turns editing on)
    return input(prompt)


def _write(text: str) -> None:
    from erniekit.cli.pieces import show_piece

    show_piece(text)


def _write_dim(text: str) -> None:
    from erniekit.cli.pieces import show_dim_piece

    show_dim_piece(text)
