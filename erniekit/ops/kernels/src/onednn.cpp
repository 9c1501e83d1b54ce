// See onednn.h. Compiled once, for every level.
#include "onednn.h"

#include <dlfcn.h>
#include <stdint.h>

#include <mutex>
#include <string>
#include <unordered_map>

namespace {

// From oneDNN 3.x: handles are opaque pointers, statuses are 0 for success.
typedef void* Handle;
typedef int64_t Dims[12];
struct Argument {
    int index;
    Handle memory;
};
enum { CPU = 1, BF16 = 2, F32 = 3, SOURCE = 1, WEIGHTS = 33, BIAS = 41, TARGET = 17, IN_ORDER = 1 };
struct Version {
    int major, minor, patch;
};

struct Interface {
    const Version* (*version)();
    int (*engine_create)(Handle*, int, size_t);
    int (*stream_create)(Handle*, Handle, unsigned);
    int (*stream_wait)(Handle);
    int (*memory_desc_create_with_strides)(Handle*, int, const Dims, int, const Dims);
    int (*memory_create)(Handle*, const void*, Handle, void*);
    int (*memory_set_data_handle)(Handle, void*);
    int (*primitive_attr_create)(Handle*);
    int (*primitive_attr_set_post_ops)(Handle, Handle);
    int (*post_ops_create)(Handle*);
    int (*post_ops_append_sum)(Handle, float, int32_t, int);
    int (*matmul_primitive_desc_create)(Handle*, Handle, Handle, Handle, Handle, Handle, Handle);
    int (*primitive_create)(Handle*, Handle);
    int (*primitive_execute)(Handle, Handle, int, const Argument*);
};

struct Matmul {
    Handle primitive = nullptr;
    Handle a = nullptr, b = nullptr, c = nullptr, bias = nullptr;
};

struct Key {
    long m, n, k, a_stride, b_stride, c_stride;
    int flags;
    bool operator==(const Key& o) const {
        return m == o.m && n == o.n && k == o.k && a_stride == o.a_stride && b_stride == o.b_stride &&
               c_stride == o.c_stride && flags == o.flags;
    }
};
struct Hash {
    size_t operator()(const Key& x) const {
        size_t h = 0;
        for (long part : {x.m, x.n, x.k, x.a_stride, x.b_stride, x.c_stride, (long)x.flags})
            h = h * 1000003u + (size_t)part;
        return h;
    }
};

Interface dnn;
Handle engine = nullptr, stream = nullptr;
bool opened = false, used = false;
std::string opened_path;
std::mutex mutex;
std::unordered_map<Key, Matmul, Hash> known;

template <class F>
bool find(void* library, const char* name, F& function) {
    function = (F)dlsym(library, name);
    return function != nullptr;
}

bool find_all(void* library) {
    return find(library, "dnnl_version", dnn.version) && find(library, "dnnl_engine_create", dnn.engine_create) &&
           find(library, "dnnl_stream_create", dnn.stream_create) &&
           find(library, "dnnl_stream_wait", dnn.stream_wait) &&
           find(library, "dnnl_memory_desc_create_with_strides", dnn.memory_desc_create_with_strides) &&
           find(library, "dnnl_memory_create", dnn.memory_create) &&
           find(library, "dnnl_memory_set_data_handle", dnn.memory_set_data_handle) &&
           find(library, "dnnl_primitive_attr_create", dnn.primitive_attr_create) &&
           find(library, "dnnl_primitive_attr_set_post_ops", dnn.primitive_attr_set_post_ops) &&
           find(library, "dnnl_post_ops_create", dnn.post_ops_create) &&
           find(library, "dnnl_post_ops_append_sum", dnn.post_ops_append_sum) &&
           find(library, "dnnl_matmul_primitive_desc_create", dnn.matmul_primitive_desc_create) &&
           find(library, "dnnl_primitive_create", dnn.primitive_create) &&
           find(library, "dnnl_primitive_execute", dnn.primitive_execute);
}

bool described(Handle& memory, long rows, long columns, long stride, bool transposed, int type) {
    const Dims sizes = {rows, columns};
    Dims strides = {stride, 1};
    if (transposed) strides[0] = 1, strides[1] = stride;
    return dnn.memory_desc_create_with_strides(&memory, 2, sizes, type, strides) == 0;
}

// The descriptors of a shape live as long as the process, as its primitive does.
bool make(const Key& key, bool a_transposed, bool b_transposed, int c_type, bool add, bool bias, Matmul& out) {
    Handle a, b, c, with_bias = nullptr, attributes = nullptr, after, product;
    if (!described(a, key.m, key.k, key.a_stride, a_transposed, BF16) ||
        !described(b, key.k, key.n, key.b_stride, b_transposed, BF16) ||
        !described(c, key.m, key.n, key.c_stride, false, c_type))
        return false;
    if (bias && !described(with_bias, 1, key.n, key.n, false, BF16)) return false;
    if (add) {
        if (dnn.primitive_attr_create(&attributes) || dnn.post_ops_create(&after) ||
            dnn.post_ops_append_sum(after, 1.0f, 0, F32) || dnn.primitive_attr_set_post_ops(attributes, after))
            return false;
    }
    if (dnn.matmul_primitive_desc_create(&product, engine, a, b, with_bias, c, attributes) ||
        dnn.primitive_create(&out.primitive, product))
        return false;
    return dnn.memory_create(&out.a, a, engine, nullptr) == 0 &&
           dnn.memory_create(&out.b, b, engine, nullptr) == 0 &&
           dnn.memory_create(&out.c, c, engine, nullptr) == 0 &&
           (!bias || dnn.memory_create(&out.bias, with_bias, engine, nullptr) == 0);
}

}  // namespace

extern "C" {

int ek_onednn_open(const char* path) {
    std::lock_guard<std::mutex> lock(mutex);
    if (opened) return opened_path == path ? 0 : 1;
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr || !find_all(library) || dnn.version()->major != 3) return 1;
    if (dnn.engine_create(&engine, CPU, 0) || dnn.stream_create(&stream, engine, IN_ORDER)) return 1;
    opened = true;
    opened_path = path;
    return 0;
}

void ek_onednn_use(int use) { used = use != 0 && opened; }

int ek_onednn_used() { return used; }

int ek_onednn_multiply(long m, long n, long k, const void* a, long a_stride, int a_transposed, const void* b,
                       long b_stride, int b_transposed, void* c, long c_stride, int c_type, int add,
                       const void* bias) {
    std::lock_guard<std::mutex> lock(mutex);
    const Key key = {m, n, k, a_stride, b_stride, c_stride,
                     a_transposed | b_transposed << 1 | c_type << 2 | add << 3 | (bias != nullptr) << 4};
    auto found = known.find(key);
    if (found == known.end()) {
        Matmul made;
        if (!make(key, a_transposed != 0, b_transposed != 0, c_type == 1 ? BF16 : F32, add != 0, bias != nullptr,
                  made))
            made.primitive = nullptr;
        found = known.emplace(key, made).first;
    }
    Matmul& x = found->second;
    if (x.primitive == nullptr) return 1;
    dnn.memory_set_data_handle(x.a, (void*)a);
    dnn.memory_set_data_handle(x.b, (void*)b);
    dnn.memory_set_data_handle(x.c, c);
    if (bias) dnn.memory_set_data_handle(x.bias, (void*)bias);
    const Argument arguments[4] = {{SOURCE, x.a}, {WEIGHTS, x.b}, {TARGET, x.c}, {BIAS, x.bias}};
    const int status = dnn.primitive_execute(x.primitive, stream, bias ? 4 : 3, arguments);
    return status || dnn.stream_wait(stream);
}

}  // extern "C"
