// Matrix products: C[M,N] = beta C + op(A)[M,K] op(B)[K,N] + bias[N], accumulated in fp32.
//
// A panel of B (NR columns, all of a block of K) is copied into the order in which the inner loop
// reads it and stays in the second-level cache while the rows of A pass by it, MR at a time. Rows of
// A are read where they are when they lie right, else copied too. Where the processor multiplies
// bf16 pairs (vdpbf16ps), a unit of the copies is two bf16 that follow each other in K; elsewhere it
// is one fp32, into which bf16 inputs are widened.
//
// No sum is split between threads, so results do not depend on their number.
#pragma once

#include "pool.h"
#include "vec.h"

namespace EK_NS {

struct Matrix {
    const void* data;
    long stride;      // elements from one row in memory to the next
    bool transposed;  // memory holds the transposed matrix
};

struct Product {
    long m, n, k;
    int type;  // of A, B and bias
    Matrix a, b;
    void* c;
    long c_stride;
    int c_type;
    float beta;        // 0 or 1; 1 only where C is fp32
    const void* bias;  // [N] or null
    const void* next_b;  // a matrix like B that a task multiplies by next, or null; only a hint
};

// The whole product; from inside a task it runs on the calling thread.
void multiply(const Product& product);

}  // namespace EK_NS
