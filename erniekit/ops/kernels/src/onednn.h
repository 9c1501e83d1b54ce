// Matrix products of bf16 by oneDNN, where the processor has matrix tiles (AMX) that it knows how to use.
//
// Our own inner loop multiplies pairs in vectors, the fastest way of every other processor. The
// library comes with Paddle's wheel without headers; what is used of its C interface is declared in
// onednn.cpp.
#pragma once

extern "C" {
// Open the library at `path`; 0 when it is one whose interface is known here.
__attribute__((visibility("default"))) int ek_onednn_open(const char* path);
// Whether bf16 products go to oneDNN from now on.
__attribute__((visibility("default"))) void ek_onednn_use(int use);
__attribute__((visibility("default"))) int ek_onednn_used();
// C = A B (+ C) (+ bias), all strides in elements, A [m,k], B [k,n], transposed as in gemm.h, C of type
// c_type (0 fp32, 1 bf16). Returns 0 when done, else the caller computes it itself.
int ek_onednn_multiply(long m, long n, long k, const void* a, long a_stride, int a_transposed, const void* b,
                       long b_stride, int b_transposed, void* c, long c_stride, int c_type, int add,
                       const void* bias);
}
