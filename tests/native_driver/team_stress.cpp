// Pools under a thread sanitizer: short lists one after another, two pools at once, pools that come and go. Every list
// adds up numbers over several operations, each of which needs all of the one before. And how many threads take part
// when processors are few.
#include <sched.h>

#include <chrono>
#include <thread>

#include "driver.h"
#include "native/turnout.h"

namespace {

constexpr int MOST = 40;

struct AddArgs {
    const int* from;  // [MOST], or null
    int* to;          // [MOST]
    int64_t chunks;
};

int64_t chunks(const AddArgs& a, const Step&) { return a.chunks; }

void run(const AddArgs& a, const Step& step, int64_t first, int64_t last) {
    int sum = 0;
    for (int i = 0; a.from && i < MOST; i++) sum += a.from[i];
    for (int64_t i = first; i < last; i++) a.to[i] = sum + step.num_rows;
}

}  // namespace

STRETTO_OP(add, AddArgs, from, to, chunks)

namespace {

void once(void* team, int round) {
    int values[4][MOST] = {};
    const int counts[] = {round % MOST, 1, MOST, 1 + round % 3};
    AddArgs args[4];
    Ops ops;
    for (int i = 0; i < 4; i++) {
        args[i] = {i ? values[i - 1] : nullptr, values[i], counts[i]};
        ops.push_back({add_chunks, add_run, &args[i]});
    }
    Step step = {};
    step.num_rows = round;
    team_run(team, ops.data(), int64_t(ops.size()), &step);
    int64_t sum = 0;
    for (int i = 0; i < 4; i++) {
        int64_t value = sum + round;
        sum = counts[i] * value;
        for (int j = 0; j < counts[i]; j++)
            if (values[i][j] != int(value)) driver::fail("an operation began before the one before it was over");
    }
}

struct CountArgs {
    const int* values;  // [MOST]
    int64_t* left;
};

int64_t chunks(const CountArgs&, const Step&) { return 1; }

void run(const CountArgs& a, const Step& step, int64_t, int64_t) {
    for (int i = 0; i < MOST; i++)
        if (a.values[i] != step.num_rows) driver::fail("the last operation began too early");
    *a.left -= 1;
}

}  // namespace

STRETTO_OP(count, CountArgs, values, left)

namespace {

// A list that says itself how often it runs.
void again(void* team, int64_t times) {
    int values[MOST] = {};
    int64_t left = times;
    AddArgs add = {nullptr, values, MOST};
    CountArgs count = {values, &left};
    Ops ops = {{add_chunks, add_run, &add}, {count_chunks, count_run, &count}};
    Step step = {};
    step.num_rows = 3;
    team_run_while(team, ops.data(), 2, &step, &left);
    if (left) driver::fail("a list ended early");
}

void drive(int num_threads, int64_t spin_ns, int rounds) {
    void* team = team_new(num_threads, spin_ns);
    for (int round = 1; round <= rounds; round++) {
        once(team, round % 9);
        if (round % 20 == 0) again(team, round / 20);
        if (round % 50 == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));  // all of them sleep
    }
    team_free(team);
}

// Windows of a whole number of lists, each of which loses so many tenths of one thread's time.
void pass(Turnout& turnout, int tenths, int windows, int wanted) {
    constexpr int64_t wall = Turnout::WINDOW_NS / 4;
    for (int i = 0; i < 4 * windows; i++) turnout.after(wall, wall * tenths / 10);
    if (turnout.now() != wanted) driver::fail("another number of threads takes part");
}

// One thread less where n (1 - L) < n - 1, and one more after a while that doubles as long as that is too early.
void policy() {
    constexpr int least = Turnout::LEAST_NS / Turnout::WINDOW_NS, most = Turnout::MOST_NS / Turnout::WINDOW_NS;
    Turnout two(2);
    pass(two, 4, 100, 2);  // 2 x 0.6 > 1
    for (int i = 1; i <= 50; i++) pass(two, 9 * (i % 2), 1, 2);  // again and again, and over soon
    pass(two, 6, 2, 1);
    pass(two, 6, least - 1, 1);  // alone it loses more: there is nobody to send home
    for (int pause = least, i = 0; i < 8; i++, pause = pause * 2 < most ? pause * 2 : most) {
        if (i) pass(two, 0, pause - 1, 1);
        pass(two, 0, 1, 2);
        pass(two, 6, 1, 1);
    }
    pass(two, 0, most, 2);
    pass(two, 0, 1, 2);  // in time at last: next time it is asked soon again
    pass(two, 9, 2, 1);
    pass(two, 0, least, 2);
    Turnout four(4);
    pass(four, 2, 100, 4);  // 4 x 0.8 > 3
    pass(four, 3, 2, 3);
    pass(four, 0, least + 1, 4);
    pass(four, 30, 6, 1);
    Turnout one(1);
    pass(one, 9, 100, 1);
}

// Two threads that never sleep on one processor lose one thread's time, so one of them stays at home.
void crowded() {
    cpu_set_t all, first;
    sched_getaffinity(0, sizeof all, &all);
    CPU_ZERO(&first);
    for (int i = 0; i < CPU_SETSIZE && !CPU_COUNT(&first); i++)
        if (CPU_ISSET(i, &all)) CPU_SET(i, &first);
    sched_setaffinity(0, sizeof first, &first);
    void* team = team_new(2, 1000);  // threads inherit the affinity
    auto since = std::chrono::steady_clock::now();
    while (team_turnout(team) == 2) {
        again(team, 1000);
        if (std::chrono::steady_clock::now() - since > std::chrono::seconds(60)) driver::fail("nobody stayed at home");
    }
    once(team, 5);
    team_free(team);
    sched_setaffinity(0, sizeof all, &all);
}

}  // namespace

int main() {
    policy();
    crowded();
    for (int threads = 1; threads <= 4; threads++)
        for (int64_t spin_ns : {0, 1000, 200000}) drive(threads, spin_ns, 400);
    std::thread other([] { drive(3, 1000, 500); });
    drive(2, 1000, 500);
    other.join();
    void* shared = team_new(3, 1000);  // callers take turns
    std::thread caller([&] {
        for (int i = 0; i < 300; i++) once(shared, i % 9);
    });
    for (int i = 0; i < 300; i++) once(shared, i % 9);
    caller.join();
    team_free(shared);
    for (int i = 0; i < 40; i++) drive(1 + i % 4, 1000, i % 3);  // come and go, some unused
    std::printf("team\n");
}
