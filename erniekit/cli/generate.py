"""`erniekit generate`: answer one prompt, or a file of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from erniekit.generate.rows import Question
    from erniekit.generate.sampler import Sampling
    from erniekit.generate.text import TextGenerator

HELP = "answer a prompt, or a file of prompts"
USAGE = """usage: erniekit generate MODEL|CONFIG --prompt TEXT [options] [key=value ...]
       erniekit generate MODEL|CONFIG --input FILE --output FILE.jsonl [options] [key=value ...]

MODEL is a model folder, a training output folder (its best, else latest checkpoint), starter, or a
hub id. CONFIG is a YAML or JSON file: the checkpoint in its output_dir if there is one, otherwise
its model_name_or_path (model_name_or_path=... on the command line always wins). lora_path=FOLDER puts
an adapter on it, unmerged.

  --prompt TEXT   the prompt (- reads it from standard input); the answer goes to standard output
  --system TEXT   a system message before it
  --input FILE    .jsonl with prompt, messages, instruction or src in each row; else a prompt a line
  --output FILE   the rows with answer, finish_reason and token counts added
  --rows N        rows of --input that are answered together (default 16)
  --raw           continue the prompt as plain text, without the chat template

  erniekit generate starter --prompt "What is the capital of France?" temperature=0
  erniekit generate ./output --input questions.jsonl --output answers.jsonl generation_seed=1"""

DEFAULT_ROWS = 16


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    from dataclasses import asdict

    from erniekit.cli.launch import require_paddle
    from erniekit.cli.options import take_options
    from erniekit.cli.target import choose_target, open_generator

    valued = ("--prompt", "--system", "--input", "--output", "--rows")
    options, words = take_options(argv, valued=valued, flags=("--raw",))
    _check(options)
    require_paddle()
    target = choose_target(words, "generate")
    target.one_adapter("answers here (chat switches between several)")

    from erniekit.generate.sampler import build_sampling
    from erniekit.log import logger

    sampling = build_sampling(target.generation_defaults(), **asdict(target.config.generation))
    questions = list(_questions(options))
    logger.info(f"model: {target.description}")
    if not sampling.greedy:
        logger.info(f"generation_seed={sampling.seed} repeats these answers")
    generator = open_generator(target)
    if "--input" in options:
        _answer_file(generator, sampling, questions, options)
    else:
        _answer_one(generator, sampling, questions[0], raw="--raw" in options)
    return 0


def _check(options: dict[str, str]) -> None:
    from erniekit.errors import ConfigError

    if ("--prompt" in options) == ("--input" in options):
        raise ConfigError("give either --prompt TEXT or --input FILE (with --output FILE.jsonl)")
    if ("--input" in options) != ("--output" in options):
        raise ConfigError("--input FILE and --output FILE.jsonl belong together")
    if "--rows" in options and not (options["--rows"].isdigit() and int(options["--rows"])):
        raise ConfigError(f"--rows {options['--rows']}: write a whole number above 0")
    if "--output" in options and Path(options["--output"]).exists():
        raise ConfigError(f"--output {options['--output']} exists; name another file, or delete it")
    if "--raw" in options and "--system" in options:
        raise ConfigError("--system has no place in plain text; leave out --raw or --system")


def _questions(options: dict[str, str]) -> "Iterator[Question]":
    import sys
    from dataclasses import replace

    from erniekit.errors import DataError
    from erniekit.generate.rows import Question, read_questions

    system = [{"role": "system", "content": options["--system"]}] if "--system" in options else []
    if "--prompt" in options:
        text = sys.stdin.read() if options["--prompt"] == "-" else options["--prompt"]
        yield Question("--prompt", {"prompt": text}, [*system, {"role": "user", "content": text}])
        return
    empty = True
    for question in read_questions(Path(options["--input"])):
        empty = False
        own = any(message["role"] == "system" for message in question.messages)
        yield question if own else replace(question, messages=system + question.messages)
    if empty:
        raise DataError(f"{options['--input']}: holds no rows")


def _prompt_ids(
    generator: "TextGenerator", sampling: "Sampling", question: "Question", *, raw: bool
) -> list[int]:
    if raw:
        return generator.tokenizer.encode(question.text)
    return generator.render(question.messages, tools=question.tools, enable_thinking=sampling.enable_thinking)


def _answer_one(generator: "TextGenerator", sampling: "Sampling", question: "Question", *, raw: bool) -> None:
    from erniekit.cli.pieces import show_piece
    from erniekit.log import logger

    prompt = _prompt_ids(generator, sampling, question, raw=raw)
    if not sampling.stream:
        answer = generator.answer([prompt], sampling)[0]
        show_piece(answer.text + "\n")
        reason = answer.finish_reason
    else:
        reason = ""
        for event in generator.stream([prompt], sampling):
            if event.text:
                show_piece(event.text)
            reason = event.finish_reason or reason
        show_piece("\n")
    if reason == "length":
        logger.info(f"(cut off after max_new_tokens={sampling.max_new_tokens})")
    elif reason == "context":
        logger.info(f"(cut off: the model's context of {generator.max_context} tokens is full)")


def _answer_file(
    generator: "TextGenerator", sampling: "Sampling", questions: "list[Question]", options: dict[str, str]
) -> None:
    """Answer in groups, in order; every group is on disk before the next begins."""
    import json
    import time

    from erniekit.errors import DataError
    from erniekit.generate.engine import check_prompts
    from erniekit.log import logger

    raw, rows = "--raw" in options, int(options.get("--rows", DEFAULT_ROWS))
    prompts = [_prompt_ids(generator, sampling, question, raw=raw) for question in questions]
    for question, prompt in zip(questions, prompts, strict=True):
        try:
            check_prompts([prompt], max_context=generator.max_context)
        except DataError as error:
            raise DataError(f"{question.origin}: {error}") from error
    started, num_tokens = time.perf_counter(), 0
    with Path(options["--output"]).open("w", encoding="utf-8") as file:
        for first in range(0, len(prompts), rows):
            answers = generator.answer(prompts[first : first + rows], sampling, first_row=first)
            for question, answer in zip(questions[first : first + rows], answers, strict=True):
                row = {
                    **question.row,
                    "answer": answer.text,
                    "finish_reason": answer.finish_reason,
                    "num_prompt_tokens": answer.num_prompt_tokens,
                    "num_tokens": answer.num_tokens,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                num_tokens += answer.num_tokens
            file.flush()
            done, seconds = min(first + rows, len(prompts)), time.perf_counter() - started
            logger.info(f"{done}/{len(prompts)} rows | {num_tokens / seconds:.1f} tok/s")
