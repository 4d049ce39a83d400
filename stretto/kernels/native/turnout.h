// How many threads of a team take part while other programs want the processors too.
//
// Whatever the system takes from one thread, the others wait for: n threads that lose the shares L_i of their time do
// the work of n (1 - L), where L is the sum of the L_i. Where L > 1 / n, n - 1 threads do more, if they are left alone
// as soon as one processor is: where that lasts, one thread sleeps. It takes part again after a while, and if that was
// too early, after twice that while.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <pthread.h>
#include <time.h>

#include <vector>
#endif

class Turnout {
  public:
    explicit Turnout(int num_threads) : most_(num_threads), now_(num_threads) {}

    int now() const { return now_; }

    // After lists of operations that took `wall` ns, of which the system kept the threads waiting `lost` ns in total.
    void after(int64_t wall, int64_t lost) {
        wall_ += wall, lost_ += lost;
        if (wall_ < WINDOW_NS) return;
        calm_ += wall_;
        bool crowded = now_ > 1 && lost_ * now_ > wall_;
        if (crowded && (tries_ || crowded_)) {
            if (tries_) patience_ = patience_ < MOST_NS / 2 ? 2 * patience_ : MOST_NS;
            now_--, calm_ = 0, tries_ = crowded_ = false;
        } else if (crowded) {
            crowded_ = true;  // may be over soon
        } else {
            if (tries_) patience_ = LEAST_NS;
            tries_ = now_ < most_ && calm_ >= patience_;
            if (tries_) now_++, calm_ = 0;
            crowded_ = false;
        }
        wall_ = lost_ = 0;
    }

    static constexpr int64_t WINDOW_NS = 20'000'000;  // many of the slices in which systems share processors
    static constexpr int64_t LEAST_NS = 100'000'000, MOST_NS = 1'000'000'000;

  private:
    int most_, now_;
    bool tries_ = false;    // the last change was one thread more, and no window has said yet whether that was right
    bool crowded_ = false;  // so was the last window
    int64_t patience_ = LEAST_NS, calm_ = 0;
    int64_t wall_ = 0, lost_ = 0;
};

// What threads lose: wall time without processor time, of threads that never sleep meanwhile.
class Losses {
  public:
#if defined(__linux__)
    void add(pthread_t thread) {
        clockid_t clock;
        if (pthread_getcpuclockid(thread, &clock) != 0) clock = CLOCK_MONOTONIC;  // seems to lose nothing
        clocks_.push_back(clock);
    }

    // The calling thread and the first `num_others` that were added begin a list.
    void begin(int num_others) {
        num_others_ = num_others;
        wall_ = ns(CLOCK_MONOTONIC), used_ = used();
    }

    // They are done with it: says how long it took and what they lost together, ns.
    void end(int64_t* wall, int64_t* lost) const {
        *wall = ns(CLOCK_MONOTONIC) - wall_;
        *lost = (num_others_ + 1) * *wall - (used() - used_);
    }

  private:
    static int64_t ns(clockid_t clock) {
        timespec t = {};
        clock_gettime(clock, &t);
        return int64_t(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
    }

    int64_t used() const {
        int64_t sum = ns(CLOCK_THREAD_CPUTIME_ID);
        for (int i = 0; i < num_others_; i++) sum += ns(clocks_[size_t(i)]);
        return sum;
    }

    std::vector<clockid_t> clocks_;
    int num_others_ = 0;
    int64_t wall_ = 0, used_ = 0;
#else  // elsewhere no thread may look at another one's clock: nothing is known to be lost
    template <class Thread>
    void add(Thread) {}
    void begin(int) {}
    void end(int64_t* wall, int64_t* lost) const { *wall = *lost = 0; }
#endif
};
