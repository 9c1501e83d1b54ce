"""`erniekit convert`: weights from the layout of transformers to Paddle's, and back."""

from pathlib import Path
from typing import Any

HELP = "convert weights between layouts; make experts of a dense model"
USAGE = """usage: erniekit convert SOURCE DESTINATION --to hf|paddle [options]

SOURCE is a model folder in either layout (which one it is in is found out from its tensors), a
training output folder (its best, else latest checkpoint), starter, or a hub id. DESTINATION is a
new folder. No bit of the weights changes unless --dtype asks for it; there and back gives the same
tensors. Tokenizer, chat template and generation defaults are copied, config.json is written as the
readers of the layout want it. One tensor is in memory at a time; Paddle is not needed.

  --to hf|paddle          hf: names of transformers (vLLM, llama.cpp, ...); paddle: FastDeploy
  --dtype WORD            auto (default: as they are), fp32, bf16, fp16
  --max-shard-size SIZE   of one file: a number of GB, or 500MB and the like (default 5GB)
  --download-hub HUB      for a hub id: huggingface (default), aistudio, modelscope
  --upcycle NUMBERS       make a mixture of experts of a dense model, with the same logits: NUMBERS is
                          experts=8,top_k=2,start=1 (start: the first layer with experts), and where
                          wanted interval=2 (every second layer), noise=0.01 (added to each expert, as
                          a share of its spread), seed=1 (of routers and noise); --to is hf if not given

  erniekit convert ./model ./model-paddle --to paddle
  erniekit convert starter ./starter-moe --upcycle experts=8,top_k=2,start=1
  erniekit convert starter ./starter-bf16 --to hf --dtype bf16 --max-shard-size 100MB"""

_OPTIONS = ("--to", "--dtype", "--max-shard-size", "--download-hub", "--upcycle")


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    from erniekit.cli.options import take_options
    from erniekit.errors import ConfigError

    options, words = take_options(argv, valued=_OPTIONS)
    unknown = [word for word in words if word.startswith("-")]
    if unknown:
        raise ConfigError(f"erniekit convert does not know {unknown[0]}; its options: {', '.join(_OPTIONS)}")
    if len(words) != 2:
        raise ConfigError(
            f"erniekit convert takes SOURCE and DESTINATION; {len(words)} words were given "
            "(erniekit convert --help)"
        )
    if "--upcycle" in options:
        return _upcycle(options, words)
    if "--to" not in options:
        raise ConfigError("erniekit convert needs --to hf or --to paddle")
    from erniekit.checkpoint.sources import locate_model
    from erniekit.export.convert import convert_model
    from erniekit.log import console

    source = locate_model(
        model_name_or_path=words[0], download_hub=options.get("--download-hub", "huggingface")
    )
    done = convert_model(
        source,
        Path(words[1]),
        layout=options["--to"],
        dtype=options.get("--dtype", "auto"),
        max_shard_size=options.get("--max-shard-size", 5),
    )
    size = _size(done.num_bytes)
    files = "1 file" if done.num_files == 1 else f"{done.num_files} files"
    console.print(
        f"{done.folder}: {done.layout} layout, {done.dtype}, {size} in {files}; read back and compared",
        markup=False,
    )
    return 0


def _upcycle(options: dict[str, str], words: list[str]) -> int:
    from erniekit.checkpoint.sources import locate_model
    from erniekit.errors import ConfigError
    from erniekit.export.upcycle import parse_upcycle, upcycle_model
    from erniekit.log import console

    if "--dtype" in options:
        raise ConfigError("--upcycle keeps the number format; convert before or after it for another --dtype")
    numbers: dict[str, Any] = parse_upcycle(options["--upcycle"])
    source = locate_model(
        model_name_or_path=words[0], download_hub=options.get("--download-hub", "huggingface")
    )
    done = upcycle_model(
        source,
        Path(words[1]),
        **numbers,
        layout=options.get("--to", "hf"),
        max_shard_size=options.get("--max-shard-size", 5),
    )
    console.print(
        f"{done.folder}: experts in {done.num_layers} layers, {done.num_parameters:,} parameters, "
        f"{done.num_active_parameters:,} active, {_size(done.num_bytes)}",
        markup=False,
    )
    return 0


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
