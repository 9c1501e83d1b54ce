// SwiGLU: y = silu(gate) up, silu(g) = g s(g), s the logistic function.
//     d gate = dy up s (1 + gate (1 - s)),    d up = dy gate s.
#include "pool.h"
#include "vec.h"

namespace EK_NS {
namespace {

// Elements of a task, about.
enum { TASK = 1 << 13 };

EK_INLINE vf logistic(vf x) { return vdiv(vset(1.0f), vadd(vset(1.0f), vexp(vsub(vzero(), x)))); }

static long rows_of_a_task(long width) { return width >= TASK ? 1 : TASK / (width < 1 ? 1 : width); }

template <class T>
static void forward(long rows, long width, const T* gate_up, T* out) {
    const long block = rows_of_a_task(width);
    ek_parallel((rows + block - 1) / block, [&](long task, int) {
        for (long i = task * block; i < rows && i < (task + 1) * block; i++) {
            const T *gate = gate_up + 2 * i * width, *up = gate + width;
            T* y = out + i * width;
            for (long j = 0; j < width; j += VW) {
                const long left = width - j;
                const vf g = vload_n(gate + j, left);
                vstore_n(y + j, vmul(vmul(g, logistic(g)), vload_n(up + j, left)), left);
            }
        }
    });
}

template <class T>
static void backward(long rows, long width, const T* gate_up, const T* grad, T* grad_gate_up) {
    const long block = rows_of_a_task(width);
    ek_parallel((rows + block - 1) / block, [&](long task, int) {
        for (long i = task * block; i < rows && i < (task + 1) * block; i++) {
            const T *gate = gate_up + 2 * i * width, *up = gate + width, *dy = grad + i * width;
            T *grad_gate = grad_gate_up + 2 * i * width, *grad_up = grad_gate + width;
            for (long j = 0; j < width; j += VW) {
                const long left = width - j;
                const vf g = vload_n(gate + j, left), d = vload_n(dy + j, left), s = logistic(g);
                const vf silu = vmul(g, s);
                // s (1 + g (1 - s)) = s + silu (1 - s)
                const vf slope = vfma(silu, vsub(vset(1.0f), s), s);
                vstore_n(grad_gate + j, vmul(vmul(d, vload_n(up + j, left)), slope), left);
                vstore_n(grad_up + j, vmul(d, silu), left);
            }
        }
    });
}

}  // namespace
}  // namespace EK_NS

// out [R,W] of gate_up [R,2W].
EK_EXPORT(ek_swiglu)(int type, long rows, long width, const void* gate_up, void* out) {
    if (type == EK_BF16) EK_NS::forward(rows, width, (const bf16*)gate_up, (bf16*)out);
    else EK_NS::forward(rows, width, (const float*)gate_up, (float*)out);
}

EK_EXPORT(ek_swiglu_backward)(int type, long rows, long width, const void* gate_up, const void* grad,
                              void* grad_gate_up) {
    if (type == EK_BF16)
        EK_NS::backward(rows, width, (const bf16*)gate_up, (const bf16*)grad, (bf16*)grad_gate_up);
    else EK_NS::backward(rows, width, (const float*)gate_up, (const float*)grad, (float*)grad_gate_up);
}
