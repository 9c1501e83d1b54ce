// Memory for the results of operators, in whole pages of one large reservation.
//
// Paddle takes every tensor from the C library, aligned; glibc can then not use a freed block for a
// tensor of the same size, and the tensors of a training step lie in a third more memory than they
// need. Here a block goes to the lowest free place that it fits, and neighbours that are free join.
// Compiled once, for every level.
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include <iterator>
#include <map>
#include <mutex>
#include <unordered_map>

namespace {

constexpr size_t kPage = 4096;

struct Space {
    char* base = nullptr;
    size_t size = 0;
    bool asked = false;
    std::map<size_t, size_t> free;             // offset -> bytes, never adjacent
    std::unordered_map<size_t, size_t> taken;  // offset -> bytes
};

// Never destroyed: tensors may be freed while the process ends.
std::mutex& lock_of_space() {
    static std::mutex* mutex = new std::mutex;
    return *mutex;
}
Space& space() {
    static Space* one = new Space;
    return *one;
}

// Addresses only, as many as twice the machine's memory; pages are there when they are written.
void reserve(Space& s) {
    s.asked = true;
    const size_t size = 2 * (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    void* base = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return;
    s.base = (char*)base;
    s.size = size;
    s.free[0] = size;
}

}  // namespace

extern "C" {

// Page-aligned memory, contents undefined; null where there is none (the caller takes another way).
__attribute__((visibility("default"))) void* ek_memory_take(size_t bytes) {
    bytes = (bytes + kPage - 1) / kPage * kPage;
    std::lock_guard<std::mutex> lock(lock_of_space());
    Space& s = space();
    if (!s.asked) reserve(s);
    if (bytes == 0) return nullptr;
    for (auto at = s.free.begin(); at != s.free.end(); ++at) {
        if (at->second < bytes) continue;
        const size_t offset = at->first, left = at->second - bytes;
        s.free.erase(at);
        if (left) s.free[offset + bytes] = left;
        s.taken[offset] = bytes;
        return s.base + offset;
    }
    return nullptr;
}

__attribute__((visibility("default"))) void ek_memory_give(void* memory) {
    std::lock_guard<std::mutex> lock(lock_of_space());
    Space& s = space();
    const auto found = s.taken.find((size_t)((char*)memory - s.base));
    if (found == s.taken.end()) return;
    size_t offset = found->first, bytes = found->second;
    s.taken.erase(found);
    auto next = s.free.lower_bound(offset);
    if (next != s.free.end() && next->first == offset + bytes) {
        bytes += next->second;
        next = s.free.erase(next);
    }
    if (next != s.free.begin()) {
        auto before = std::prev(next);
        if (before->first + before->second == offset) {
            before->second += bytes;
            return;
        }
    }
    s.free[offset] = bytes;
}

// Give the pages of what is free back to the system; the addresses stay reserved.
__attribute__((visibility("default"))) void ek_memory_release() {
    std::lock_guard<std::mutex> lock(lock_of_space());
    Space& s = space();
    for (const auto& [offset, bytes] : s.free) madvise(s.base + offset, bytes, MADV_DONTNEED);
}

// Bytes taken now, and the number of free places.
__attribute__((visibility("default"))) void ek_memory_state(size_t* taken, size_t* places) {
    std::lock_guard<std::mutex> lock(lock_of_space());
    *taken = 0;
    for (const auto& entry : space().taken) *taken += entry.second;
    *places = space().free.size();
}

}  // extern "C"
