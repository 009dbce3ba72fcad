// Threads and memory for the kernels; compiled once, for any processor.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fusedmdn {

using Body = void (*)(void* context, int part, int parts);

// body(context, part, parts) once for every part < parts = threads; part 0 on the calling thread. Threads live for this
// call alone, so a process may fork at any time; where one cannot be had, the caller does its part.
void run_parallel(int threads, Body body, void* context);

// The same on the threads of the OpenMP that PyTorch works with, where the process has loaded one for all to see, and has
// not been forked since it loaded this (forked before, by a parent that had used them, PyTorch itself could not use them).
// For kernels that run between PyTorch's own operations, after each of which those threads spin for milliseconds, on the
// very cores that threads of ours would need. Three layers of 400 units, T = 100, B = 16 on two cores: a training step takes
// 245 ms on threads of our own, 195 ms on these (medians; commits b7fa28b and b445013).
void run_shared(int threads, Body body, void* context);

// Threads that work together on parts of a few microseconds each. `run_team` is a fork and a join; waiting threads spin, then
// yield, then sleep. When a helper has been kept from its core, the caller does all parts alone for a while.
struct Team;
Team* team_start(int threads);  // null: no memory
void run_team(Team* team, Body body, void* context);
void team_stop(Team* team);

// 64-byte aligned, on huge pages where the system has them; null: no memory.
void* allocate(std::size_t bytes);
void release(void* memory);

namespace {

template <class F>
void parallel(int threads, F&& f) {
    run_parallel(threads, [](void* context, int part, int parts) { (*static_cast<F*>(context))(part, parts); }, &f);
}

template <class F>
void parallel_shared(int threads, F&& f) {
    run_shared(threads, [](void* context, int part, int parts) { (*static_cast<F*>(context))(part, parts); }, &f);
}

template <class F>
void team_run(Team* team, F&& f) {
    if (!team) return f(0, 1);
    run_team(team, [](void* context, int part, int parts) { (*static_cast<F*>(context))(part, parts); }, &f);
}

// Memory that lives as long as its block of code. `ok()` is false if there was none.
template <class E>
struct Buffer {
    E* data;
    explicit Buffer(std::size_t count) : data(static_cast<E*>(allocate((count ? count : 1) * sizeof(E)))) {}
    ~Buffer() { release(data); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    bool ok() const { return data != nullptr; }
    operator E*() const { return data; }
};

}  // namespace
}  // namespace fusedmdn
