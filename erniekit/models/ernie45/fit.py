"""Whether the tensors of a folder are those that its config.json asks for; all that is not, in one error."""

import re
from collections.abc import Mapping

from erniekit.checkpoint.files import TensorFolder
from erniekit.checkpoint.header import num_bytes
from erniekit.errors import CheckpointError
from erniekit.log import logger
from erniekit.models.ernie45.config import Ernie45Config
from erniekit.models.ernie45.layouts import Stored
from erniekit.models.ernie45.moe_config import Ernie45MoeConfig
from erniekit.models.ernie45.plan import EMBEDDING, HEAD

FLOATS = ("F32", "BF16", "F16")
_AHEAD = ("model.mtp_", "mtp_")
_TOWER = ("vision_model.", "model.vision_model.", "model.resampler_model.", "resampler_model.")
_EXPERT = re.compile(r"\.mlp\.(experts|gate)\.")
_BLOCK_BYTES = 1 << 20
_LISTED = 12


def check_fit(
    tensors: TensorFolder,
    config: Ernie45Config,
    layout: str,
    expected: Mapping[str, tuple[Stored, ...]],
    actual: Mapping[str, str],
) -> None:
    """Compare the tensors that a config asks for with those that are there.

    Args:
        expected: parameter -> the stored tensors it is made of, under names with the prefix `model.`.
        actual: such a name -> the name in the files.

    Raises:
        CheckpointError: tensors are missing, unexpected, mis-shaped, or no plain floats; lists them.
    """
    pieces = [piece for group in expected.values() for piece in group]
    problems = {"missing": [piece.name for piece in pieces if piece.name not in actual]}
    present = [piece for piece in pieces if piece.name in actual]
    shapes = {piece.name: tensors.info(actual[piece.name]).shape for piece in present}
    problems["of another shape"] = [
        f"{piece.name} is {list(shapes[piece.name])}, config.json asks for {list(piece.shape)}"
        for piece in present
        if shapes[piece.name] != piece.shape
    ]
    extra = sorted(set(actual) - {piece.name for piece in pieces})
    spare_head = config.tie_word_embeddings and f"{HEAD}.weight" in extra
    if spare_head:
        extra.remove(f"{HEAD}.weight")
    unused = [name for name in extra if name.startswith(_AHEAD)]
    tower = [name for name in extra if name.startswith(_TOWER) and getattr(config, "num_modalities", 1) == 2]
    unused += tower
    problems["unexpected"] = [name for name in extra if name not in unused]
    problems["of a type that is not built"] = _type_problems(tensors, expected, actual)
    if any(problems.values()):
        listing = "\n".join(_listed(word, names) for word, names in problems.items() if names)
        hint = _hint(config, problems, actual)
        raise CheckpointError(f"{tensors.folder}: the weights do not fit config.json\n{listing}{hint}")
    if len(unused) > len(tower):
        number = len(unused) - len(tower)
        logger.info(f"{tensors.folder}: {number} tensors of multi-token prediction are not used")
    if tower:
        logger.warning(
            f"{tensors.folder}: {len(tower)} tensors of the vision tower are not used, since it is not built "
            "yet; what is saved from this model is its text side alone"
        )
    if spare_head:
        _check_spare_head(tensors, actual, layout)


def _type_problems(
    tensors: TensorFolder, expected: Mapping[str, tuple[Stored, ...]], actual: Mapping[str, str]
) -> list[str]:
    found = []
    for parameter, pieces in expected.items():
        dtypes = {
            piece.name: tensors.info(actual[piece.name]).dtype for piece in pieces if piece.name in actual
        }
        wrong = [f"{name} is {dtype}" for name, dtype in dtypes.items() if dtype not in FLOATS]
        if not wrong and len(set(dtypes.values())) > 1:
            listed = dtypes.values() if len(dtypes) <= 3 else sorted(set(dtypes.values()))
            wrong = [f"the pieces of {parameter} are of different types: {', '.join(listed)}"]
        found += wrong
    return found


def _listed(word: str, names: list[str]) -> str:
    more = f"\n    ... and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"  {len(names)} {word}:\n    " + "\n    ".join(names[:_LISTED]) + more


def _hint(config: Ernie45Config, problems: Mapping[str, list[str]], actual: Mapping[str, str]) -> str:
    extra, missing = problems["unexpected"], problems["missing"]
    if any(name.endswith(".quant_weight") for name in extra):
        return "\nThese weights are quantised, and what asks for them needs the model in full."
    if not isinstance(config, Ernie45MoeConfig) and any(_EXPERT.search(name) for name in extra):
        return "\nThese are tensors of a mixture-of-experts model, but config.json describes a dense one."
    if problems["of a type that is not built"]:
        return "\nReading quantised checkpoints is not built yet; weights must be F32, BF16 or F16."
    if missing and all(name.startswith(_AHEAD) for name in missing):
        return (
            "\nIf the model has no multi-token prediction, write num_nextn_predict_layers: 0 in config.json."
        )
    if isinstance(config, Ernie45MoeConfig) and not any(_EXPERT.search(name) for name in actual):
        return "\nconfig.json describes a mixture of experts, but there are no experts among the tensors."
    if missing == [f"{HEAD}.weight"]:
        return "\nIf the head shares the embedding, write tie_word_embeddings: true in config.json."
    if extra and all(name.endswith(".bias") for name in extra) and not config.use_bias:
        return "\nIf the model has biases, write use_bias: true in config.json."
    return ""


def _check_spare_head(tensors: TensorFolder, actual: Mapping[str, str], layout: str) -> None:
    """A tied model may store its head too, as long as it is the embedding."""
    head, table = actual[f"{HEAD}.weight"], actual[f"{EMBEDDING}.weight"]
    heads, tables = tensors.info(head), tensors.info(table)
    same = heads.dtype == tables.dtype
    same = same and heads.shape == (tables.shape if layout == "hf" else tables.shape[::-1])
    rows = max(1, _BLOCK_BYTES // max(1, num_bytes(heads.dtype, heads.shape[1:])))
    columns = tensors.read(table) if same and layout == "paddle" else None
    for start in range(0, heads.shape[0] if same else 0, rows):
        stop = min(start + rows, heads.shape[0])
        other = tensors.read_rows(table, start, stop) if columns is None else columns[:, start:stop].T
        if tensors.read_rows(head, start, stop).tobytes() != other.tobytes():
            same = False
            break
    if not same:
        raise CheckpointError(
            f"{tensors.folder}: {head} differs from the embedding, but config.json says "
            "tie_word_embeddings: true; write false there if the head is to be its own"
        )
