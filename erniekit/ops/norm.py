"""RMSNorm (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + eps), then times weight.

The statistics are fp32; the normalised value is cast back to the type of x BEFORE the product
with the weight, as ERNIE 4.5 does (it matters in bf16).
"""

import paddle

from erniekit.ops.backend import to_arithmetic, to_storage


def rms_norm(x: paddle.Tensor, weight: paddle.Tensor, epsilon: float) -> paddle.Tensor:
    """x [..., D] normalised over D, times weight [D]; same type as x."""
    dtype = x.dtype
    x32 = x.astype("float32") if dtype != paddle.float32 else x
    normed = x32 * paddle.rsqrt((x32 * x32).mean(-1, keepdim=True) + epsilon)
    normed, weight = to_arithmetic(to_storage(normed, dtype), weight)
    return to_storage(normed * weight, dtype)
