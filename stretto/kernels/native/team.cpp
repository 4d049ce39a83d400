// A team of threads that runs lists of operations.
//
// All threads walk through one list together. A single atomic word says which operation is open and how many chunks of
// each of its halves are left; threads claim chunks one at a time, so a thread that the system put aside costs at most
// the chunk it holds, and the others take the rest. Every other thread begins with the second half: memory is read
// faster as two long streams than as one that the threads share. Whoever finishes the last chunk of an operation opens
// the next one, and runs by itself those that have a single chunk. Meanwhile the others ask memory for what the next
// matrix begins with. Between lists threads spin for a moment and then sleep. Where other programs keep taking
// processors away, fewer threads take part (turnout.h).
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "op.h"
#include "native/turnout.h"

namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

constexpr uint64_t HALF_BITS = 14, OP_BITS = 16;
constexpr uint64_t HALF_MASK = (1u << HALF_BITS) - 1, OP_MASK = (1u << OP_BITS) - 1;
constexpr int64_t MAX_CHUNKS = 2 * int64_t(HALF_MASK);

// epoch (20 bits) | operation (16) | chunks that nobody has taken: of the second half (14), of the first (14). A stale
// word never compares equal: the epoch has moved on, and within one the operation.
struct Word {
    uint64_t bits;

    static Word of(uint64_t epoch, uint64_t op, uint64_t first, uint64_t second) {
        return {(((epoch << OP_BITS | op) << HALF_BITS | second) << HALF_BITS) | first};
    }
    uint64_t op() const { return bits >> (2 * HALF_BITS) & OP_MASK; }
    int64_t left(int half) const { return int64_t((half ? bits >> HALF_BITS : bits) & HALF_MASK); }
    uint64_t without_one(int half) const { return bits - (half ? uint64_t(1) << HALF_BITS : 1); }
};

// Chunks of the first half.
int64_t first_half(int64_t num_chunks) { return (num_chunks + 1) / 2; }

// What a thread without work may ask memory for: the beginning of its half of an operation that is still to come.
// Addresses may be stale by the time they are used: asking for one is always allowed, and then in vain.
struct Wish {
    std::atomic<const char*> start{nullptr}, end{nullptr};

    void set(Span span) {
        auto* bytes = static_cast<const char*>(span.start);
        start.store(bytes, std::memory_order_relaxed);
        end.store(bytes + (span.bytes < MOST_BYTES ? span.bytes : MOST_BYTES), std::memory_order_relaxed);
    }

  private:
    static constexpr int64_t MOST_BYTES = 256 << 10;  // a part of the second cache
};

// How far a thread has come with it.
struct Idle {
    static constexpr int LINES = 32;  // between two looks at whether there is work
    const char *start = nullptr, *at = nullptr;

    void once(const Wish& wish) {
        const char* first = wish.start.load(std::memory_order_relaxed);
        if (first != start) start = at = first;
        const char* end = wish.end.load(std::memory_order_relaxed);
        for (int i = 0; i < LINES && at < end; i++, at += 64) __builtin_prefetch(at, 0, 2);
        pause();
    }
};

class Team {
  public:
    Team(int num_threads, int64_t spin_ns) : spin_ns_(spin_ns), turnout_(num_threads), invited_(num_threads) {
        for (int i = 1; i < num_threads; i++) threads_.emplace_back([this, i] { work(i); });
        for (auto& thread : threads_) losses_.add(thread.native_handle());
    }

    ~Team() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_.store(true);
        }
        wake_.notify_all();
        come_back_.notify_all();
        for (auto& thread : threads_) thread.join();
    }

    void run(const Op* ops, int64_t num_ops, const Step* step) {
        std::lock_guard<std::mutex> one_list_at_a_time(running_);
        run_once(ops, num_ops, step);
    }

    // Again and again while `left` says so: the list itself counts it down.
    void run_while(const Op* ops, int64_t num_ops, const Step* step, const int64_t* left) {
        std::lock_guard<std::mutex> one_list_at_a_time(running_);
        while (*left > 0) run_once(ops, num_ops, step);
    }

    int turnout() const { return invited_.load(); }

  private:
    void run_once(const Op* ops, int64_t num_ops, const Step* step) {
        ops_ = ops, num_ops_ = num_ops, step_ = step;
        losses_.begin(invited_ - 1);
        epoch_++;
        done_.store(0, std::memory_order_relaxed);
        wished_ = -1;
        open(0);
        if (sleeping_.load() > 0 && !is_over()) {
            { std::lock_guard<std::mutex> lock(mutex_); }
            wake_.notify_all();
        }
        Idle idle;
        while (!is_over()) {
            if (!claim(0)) idle.once(wishes_[0]);
        }
        if (!threads_.empty()) invite();
    }

    // Says how many threads take part from now on.
    void invite() {
        int64_t wall, lost;
        losses_.end(&wall, &lost);
        turnout_.after(wall, lost);
        int before = invited_.load(std::memory_order_relaxed);
        if (turnout_.now() == before) return;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            invited_.store(turnout_.now());
        }
        if (turnout_.now() > before) come_back_.notify_all();
    }

    // Opens the first operation at or after `op` that several threads can share; runs the small ones on the way.
    void open(int64_t op) {
        for (; op < num_ops_; op++) {
            int64_t n = ops_[op].chunks(ops_[op].args, step_);
            if (n > MAX_CHUNKS) __builtin_trap();
            if (op >= wished_ && !threads_.empty()) wish(op + 1);
            if (n == 1 || (n > 1 && threads_.empty())) ops_[op].run(ops_[op].args, step_, 0, n);
            if (n > 1 && !threads_.empty()) {
                num_chunks_.store(n, std::memory_order_relaxed);
                done_.store(0, std::memory_order_relaxed);
                uint64_t first = uint64_t(first_half(n));
                cursor_.store(Word::of(epoch_, uint64_t(op), first, uint64_t(n) - first).bits, std::memory_order_seq_cst);
                return;
            }
        }
        cursor_.store(Word::of(epoch_, OP_MASK, 0, 0).bits, std::memory_order_seq_cst);
    }

    // Says what the first operation at or after `op` that reads a lot will read first.
    void wish(int64_t op) {
        while (op < num_ops_ && !ops_[op].reads) op++;
        wished_ = op;
        if (op == num_ops_) return;
        int64_t n = ops_[op].chunks(ops_[op].args, step_), half = first_half(n);
        if (n < 2) return;
        wishes_[0].set(ops_[op].reads(ops_[op].args, step_, 0, half));
        wishes_[1].set(ops_[op].reads(ops_[op].args, step_, half, n));
    }

    bool is_over() const { return Word{cursor_.load(std::memory_order_acquire)}.op() == OP_MASK; }

    // Takes one chunk of the open operation, of this half while it has any, and runs it. False if there was none.
    bool claim(int half) {
        Word word = {cursor_.load(std::memory_order_acquire)};
        if (word.left(half) == 0) half = 1 - half;
        if (word.op() == OP_MASK || word.left(half) == 0) return false;
        if (!cursor_.compare_exchange_strong(word.bits, word.without_one(half), std::memory_order_acq_rel)) return true;
        // From here on, until this chunk is counted, nobody can open another operation and change `num_chunks_`.
        int64_t num_chunks = num_chunks_.load(std::memory_order_relaxed);
        int64_t chunk = (half ? num_chunks : first_half(num_chunks)) - word.left(half);
        int64_t op = int64_t(word.op());
        ops_[op].run(ops_[op].args, step_, chunk, chunk + 1);
        if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_chunks) open(op + 1);
        return true;
    }

    bool is_invited(int thread) const { return thread < invited_.load(std::memory_order_relaxed); }

    void work(int thread) {
        Idle idle;
        int half = thread % 2;
        while (!stop_.load(std::memory_order_relaxed)) {
            if (!is_invited(thread)) {
                stay_away(thread);
                continue;
            }
            if (!is_over()) {
                if (!claim(half)) idle.once(wishes_[half]);
                continue;
            }
            auto since = std::chrono::steady_clock::now();
            bool waits = true;
            while (waits && !stop_.load(std::memory_order_relaxed)) {
                for (int i = 0; i < 64 && (waits = is_over()); i++) pause();
                if (waits && (std::chrono::steady_clock::now() - since).count() > spin_ns_) break;
            }
            if (waits) sleep();
        }
    }

    void sleep() {
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.fetch_add(1);
        wake_.wait(lock, [this] { return stop_.load() || !is_over(); });
        sleeping_.fetch_sub(1);
    }

    void stay_away(int thread) {
        std::unique_lock<std::mutex> lock(mutex_);
        come_back_.wait(lock, [this, thread] { return stop_.load() || is_invited(thread); });
    }

    std::vector<std::thread> threads_;
    std::mutex running_, mutex_;
    std::condition_variable wake_, come_back_;
    int64_t spin_ns_;
    Losses losses_;
    Turnout turnout_;
    std::atomic<int> invited_;  // threads that take part, the calling one among them
    const Op* ops_ = nullptr;
    int64_t num_ops_ = 0;
    const Step* step_ = nullptr;
    uint64_t epoch_ = 0;
    int64_t wished_ = -1;  // the operation that `wishes_` are about; changed by who opens operations
    Wish wishes_[2];       // of the halves
    std::atomic<bool> stop_{false};
    std::atomic<int> sleeping_{0};
    alignas(64) std::atomic<uint64_t> cursor_{Word::of(0, OP_MASK, 0, 0).bits};
    alignas(64) std::atomic<int64_t> num_chunks_{0};
    alignas(64) std::atomic<int64_t> done_{0};
};

}  // namespace

extern "C" {

void* team_new(int32_t num_threads, int64_t spin_ns) { return new Team(num_threads, spin_ns); }
void team_free(void* team) { delete static_cast<Team*>(team); }
void team_run(void* team, const Op* ops, int64_t num_ops, const Step* step) {
    static_cast<Team*>(team)->run(ops, num_ops, step);
}
void team_run_while(void* team, const Op* ops, int64_t num_ops, const Step* step, const int64_t* left) {
    static_cast<Team*>(team)->run_while(ops, num_ops, step, left);
}
int32_t team_turnout(void* team) { return static_cast<Team*>(team)->turnout(); }  // threads that take part just now

}  // extern "C"
