"""Raw bits, as files hold them, to tensors of a model and back."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import paddle


def load_weights(model: Any, items: Any, those: Collection[str] | None = None) -> None:
    """Copy raw tensors (name, safetensors dtype, array) in memory layout into the model, casting each once.

    The source has already checked names and shapes; a name the model does not have is our own fault.
    `those` are the parameters that the source has; None for all.
    """
    parameters = dict(model.named_parameters())
    missing = set(parameters) if those is None else set(parameters).intersection(those)
    for name, dtype, array in items:
        parameters[name].set_value(to_tensor(array, dtype).astype(parameters[name].dtype))
        missing.discard(name)
    assert not missing, f"tensors without a source: {sorted(missing)}"


def to_tensor(array: Any, dtype: str) -> "paddle.Tensor":
    """A Paddle tensor from raw bits; `dtype` is a safetensors word, bf16 comes as uint16."""
    import paddle

    tensor = paddle.to_tensor(array)
    if dtype == "BF16":
        return tensor.view("bfloat16")
    return tensor


def word_of(tensor: "paddle.Tensor") -> str:
    """Safetensors word of a tensor's type."""
    words = {"paddle.float32": "F32", "paddle.bfloat16": "BF16", "paddle.float16": "F16"}
    return words[str(tensor.dtype)]


def to_raw(tensor: "paddle.Tensor") -> tuple[str, Any]:
    """Safetensors word and raw bits of a tensor (bf16 as uint16)."""
    return word_of(tensor), tensor.numpy()
