// A pool of threads that runs lists of operations.
//
// All threads walk through one list together. A single atomic word says which operation is open and how many of its
// chunks are left; threads claim chunks one at a time, so a thread that the system put aside costs at most the chunk it holds,
// and the others take the rest. Whoever finishes the last chunk of an operation opens the next one, and runs by itself
// those that have a single chunk. Between lists threads spin for a moment and then sleep.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "op.h"

namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

constexpr uint64_t CHUNK_BITS = 24, OP_BITS = 16;
constexpr uint64_t CHUNK_MASK = (1u << CHUNK_BITS) - 1, OP_MASK = (1u << OP_BITS) - 1;
constexpr int64_t MAX_CHUNKS = int64_t(CHUNK_MASK);

// epoch (24 bits) | operation (16) | chunks that nobody has taken (24). A stale word never compares equal: the epoch has
// moved on, and within one the operation.
uint64_t pack(uint64_t epoch, uint64_t op, uint64_t left) {
    return (epoch << (CHUNK_BITS + OP_BITS)) | (op << CHUNK_BITS) | left;
}

class Pool {
  public:
    Pool(int num_threads, int64_t spin_ns) : spin_ns_(spin_ns) {
        for (int i = 1; i < num_threads; i++) threads_.emplace_back([this] { work(); });
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_.store(true);
        }
        wake_.notify_all();
        for (auto& thread : threads_) thread.join();
    }

    void run(const Op* ops, int64_t num_ops, const Step* step) {
        std::lock_guard<std::mutex> one_list_at_a_time(running_);
        ops_ = ops, num_ops_ = num_ops, step_ = step;
        epoch_++;
        done_.store(0, std::memory_order_relaxed);
        open(0);
        if (sleeping_.load() > 0 && !is_over()) {
            { std::lock_guard<std::mutex> lock(mutex_); }
            wake_.notify_all();
        }
        while (!is_over()) {
            if (!claim()) pause();
        }
    }

  private:
    // Opens the first operation at or after `op` that several threads can share; runs the small ones on the way.
    void open(int64_t op) {
        for (; op < num_ops_; op++) {
            int64_t n = ops_[op].chunks(ops_[op].args, step_);
            if (n > MAX_CHUNKS) __builtin_trap();
            if (n == 1 || (n > 1 && threads_.empty())) ops_[op].run(ops_[op].args, step_, 0, n);
            if (n > 1 && !threads_.empty()) {
                num_chunks_.store(n, std::memory_order_relaxed);
                done_.store(0, std::memory_order_relaxed);
                cursor_.store(pack(epoch_, uint64_t(op), uint64_t(n)), std::memory_order_seq_cst);
                return;
            }
        }
        cursor_.store(pack(epoch_, OP_MASK, 0), std::memory_order_seq_cst);
    }

    bool is_over() const { return ((cursor_.load(std::memory_order_acquire) >> CHUNK_BITS) & OP_MASK) == OP_MASK; }

    // Takes one chunk of the open operation and runs it. False if there was none to take.
    bool claim() {
        uint64_t word = cursor_.load(std::memory_order_acquire);
        uint64_t op = (word >> CHUNK_BITS) & OP_MASK, left = word & CHUNK_MASK;
        if (op == OP_MASK || left == 0) return false;
        if (!cursor_.compare_exchange_strong(word, word - 1, std::memory_order_acq_rel)) return true;
        // From here on, until this chunk is counted, nobody can open another operation and change `num_chunks_`.
        int64_t num_chunks = num_chunks_.load(std::memory_order_relaxed), chunk = num_chunks - int64_t(left);
        const Op& mine = ops_[op];
        mine.run(mine.args, step_, chunk, chunk + 1);
        if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_chunks) open(int64_t(op) + 1);
        return true;
    }

    void work() {
        while (!stop_.load(std::memory_order_relaxed)) {
            if (!is_over()) {
                if (!claim()) pause();
                continue;
            }
            auto since = std::chrono::steady_clock::now();
            bool idle = true;
            while (idle && !stop_.load(std::memory_order_relaxed)) {
                for (int i = 0; i < 64 && (idle = is_over()); i++) pause();
                if (idle && (std::chrono::steady_clock::now() - since).count() > spin_ns_) break;
            }
            if (idle) sleep();
        }
    }

    void sleep() {
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.fetch_add(1);
        wake_.wait(lock, [this] { return stop_.load() || !is_over(); });
        sleeping_.fetch_sub(1);
    }

    std::vector<std::thread> threads_;
    std::mutex running_, mutex_;
    std::condition_variable wake_;
    int64_t spin_ns_;
    const Op* ops_ = nullptr;
    int64_t num_ops_ = 0;
    const Step* step_ = nullptr;
    uint64_t epoch_ = 0;
    std::atomic<bool> stop_{false};
    std::atomic<int> sleeping_{0};
    alignas(64) std::atomic<uint64_t> cursor_{pack(0, OP_MASK, 0)};
    alignas(64) std::atomic<int64_t> num_chunks_{0};
    alignas(64) std::atomic<int64_t> done_{0};
};

}  // namespace

extern "C" {

void* pool_new(int32_t num_threads, int64_t spin_ns) { return new Pool(num_threads, spin_ns); }
void pool_free(void* pool) { delete static_cast<Pool*>(pool); }
void pool_run(void* pool, const Op* ops, int64_t num_ops, const Step* step) {
    static_cast<Pool*>(pool)->run(ops, num_ops, step);
}
int64_t step_size() { return sizeof(Step); }

}  // extern "C"
