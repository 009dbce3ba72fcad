#include "threads.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace fusedmdn {

namespace {

#if defined(__linux__)
const pid_t LOADED_IN = getpid();  // a forked process has none of its parent's threads
#endif

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

constexpr int SPINS = 4000;           // pauses before a waiting thread yields: some 50 to 150 microseconds
constexpr int YIELDS = 200;           // yields before a helper sleeps
constexpr double LATE = 200e-6;       // seconds after that: a helper that makes the caller wait longer has lost its core
constexpr double WOKEN = 1e-3;        // the same for a helper that had to be woken
constexpr int FIRST_ALONE = 512;      // runs done alone then; doubled every time it happens again soon,
constexpr int LONGEST_ALONE = 1 << 16;
constexpr int PUNCTUAL = 4096;        // and back to the first after so many runs in time

// OpenMP's own entry, of GNU's library and of LLVM's: runs f(data) on a team of so many threads, the caller in it.
using OpenMP = void (*)(void (*f)(void*), void* data, unsigned threads, unsigned flags);

OpenMP openmp() {
#if defined(__linux__)
    static const auto found = reinterpret_cast<OpenMP>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return getpid() == LOADED_IN ? found : nullptr;
#else
    return nullptr;
#endif
}

// Parts that a team shares out; whoever comes late finds less to do.
struct Shared {
    Body body;
    void* context;
    int parts;
    std::thread::id caller;
    std::atomic<int> next{1};

    void work() {
        if (std::this_thread::get_id() == caller) body(context, 0, parts);
        for (int part; (part = next.fetch_add(1, std::memory_order_relaxed)) < parts;) body(context, part, parts);
    }
};

double now() {  // seconds
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

void* allocate(std::size_t bytes) {
    constexpr std::size_t huge = std::size_t{1} << 21;
    const std::size_t alignment = bytes >= huge ? huge : 64;
    const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    if (rounded < bytes) return nullptr;
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment, rounded)) return nullptr;
#if defined(__linux__)
    if (alignment == huge) madvise(memory, rounded, MADV_HUGEPAGE);
#endif
    return memory;
}

void release(void* memory) { std::free(memory); }

void run_parallel(int threads, Body body, void* context) {
    std::vector<std::thread> helpers;
    int started = 1;
    try {
        helpers.reserve(threads > 1 ? threads - 1 : 0);
        for (; started < threads; ++started) helpers.emplace_back(body, context, started, threads);
    } catch (const std::system_error&) {  // the caller does the parts of those that cannot be had
    } catch (const std::bad_alloc&) {
    }
    body(context, 0, threads);
    for (int part = started; part < threads; ++part) body(context, part, threads);
    for (auto& helper : helpers) helper.join();
}

void run_shared(int threads, Body body, void* context) {
    const OpenMP team = threads > 1 ? openmp() : nullptr;
    if (!team) return run_parallel(threads, body, context);
    Shared shared{body, context, threads, std::this_thread::get_id()};
    // 0: as many as PyTorch takes; of another number OpenMP would end some, and begin them anew for PyTorch
    team([](void* given) { static_cast<Shared*>(given)->work(); }, &shared, 0, 0);
}

struct Team {
    Body body = nullptr;
    void* context = nullptr;
    std::atomic<std::uint32_t> round{0};  // a new value starts a run
    std::atomic<int> pending{0};          // helpers still at work in this run
    std::atomic<int> asleep{0};
    std::atomic<bool> stopping{false};
    std::mutex mutex;
    std::condition_variable wake;
    std::vector<std::thread> helpers;

    int alone = 0, next_alone = FIRST_ALONE, in_time = 0;

    int parts() const { return static_cast<int>(helpers.size()) + 1; }

    void start_round() {
        round.fetch_add(1, std::memory_order_seq_cst);
        if (asleep.load(std::memory_order_seq_cst)) {
            std::lock_guard<std::mutex> lock(mutex);
            wake.notify_all();
        }
    }

    std::uint32_t await_round(std::uint32_t seen) {
        for (int spins = 0; spins < SPINS + YIELDS; ++spins) {
            const auto value = round.load(std::memory_order_acquire);
            if (value != seen) return value;
            if (spins < SPINS) pause();
            else std::this_thread::yield();
        }
        std::unique_lock<std::mutex> lock(mutex);
        asleep.fetch_add(1, std::memory_order_seq_cst);
        wake.wait(lock, [&] { return round.load(std::memory_order_seq_cst) != seen; });
        asleep.fetch_sub(1, std::memory_order_seq_cst);
        return round.load(std::memory_order_acquire);
    }

    void help(int part, int parts) {
        for (std::uint32_t seen = 0;;) {
            seen = await_round(seen);
            if (stopping.load(std::memory_order_relaxed)) return;
            body(context, part, parts);
            pending.fetch_sub(1, std::memory_order_release);
        }
    }

    // Waits for the helpers; true if they were no later than `allowed`.
    bool join(double allowed) {
        for (int spins = 0; spins < SPINS; ++spins) {
            if (!pending.load(std::memory_order_acquire)) return true;
            pause();
        }
        const double start = now();
        while (pending.load(std::memory_order_acquire)) std::this_thread::yield();
        return now() - start < allowed;
    }
};

Team* team_start(int threads) {
    Team* team = new (std::nothrow) Team;
    if (!team) return nullptr;
    try {
        team->helpers.reserve(threads > 1 ? threads - 1 : 0);
    } catch (const std::bad_alloc&) {
        delete team;
        return nullptr;
    }
    try {
        for (int part = 1; part < threads; ++part) team->helpers.emplace_back(&Team::help, team, part, threads);
    } catch (const std::system_error&) {  // not all can be had, and each was told how many parts there are
        team_stop(team);
        return team_start(1);
    }
    return team;
}

void run_team(Team* team, Body body, void* context) {
    const int parts = team->parts();
    if (parts == 1) return body(context, 0, 1);
    if (team->alone > 0) {
        --team->alone;
        return body(context, 0, 1);
    }
    const double allowed = team->asleep.load(std::memory_order_relaxed) ? WOKEN : LATE;
    team->body = body;
    team->context = context;
    team->pending.store(parts - 1, std::memory_order_relaxed);
    team->start_round();
    body(context, 0, parts);
    if (team->join(allowed)) {
        if (++team->in_time >= PUNCTUAL) team->next_alone = FIRST_ALONE;
        return;
    }
    team->in_time = 0;
    team->alone = team->next_alone;
    if (team->next_alone < LONGEST_ALONE) team->next_alone *= 2;
}

void team_stop(Team* team) {
    team->stopping.store(true, std::memory_order_relaxed);
    team->start_round();
    for (auto& helper : team->helpers) helper.join();
    delete team;
}

}  // namespace fusedmdn
