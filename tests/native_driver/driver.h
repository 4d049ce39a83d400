// What the drivers of all families share: buffers that end where their contents end, random rows and sequences, and a
// runner that wants the same bits from any number of threads.
//
// A driver includes the source of its family and so fills the very structs that the kernels read.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "commit.h"
#include "op.h"

extern "C" {
void* team_new(int32_t num_threads, int64_t spin_ns);
void team_free(void* team);
void team_run(void* team, const Op* ops, int64_t num_ops, const Step* step);
void team_run_while(void* team, const Op* ops, int64_t num_ops, const Step* step, const int64_t* left);
int32_t team_turnout(void* team);
}
using Ops = std::vector<Op>;
using Outputs = std::vector<float>;

namespace driver {

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "driver: %s\n", what);
    std::abort();
}

class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}

    uint32_t word() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return uint32_t(state_ >> 33) ^ uint32_t(state_ >> 45);
    }
    int below(int n) { return int(word() % uint32_t(n)); }
    float value() { return float(below(1 << 20)) * 0x1p-19f - 1.0f; }  // from -1 to 1
    template <class T>
    T one_of(std::initializer_list<T> of) {
        return of.begin()[below(int(of.size()))];
    }

  private:
    uint64_t state_;
};

// `count` items from malloc, one byte more would be seen; all bits set (NaN), so what nobody writes is seen, too.
template <class T>
class Buffer {
  public:
    explicit Buffer(int64_t count) : count_(count), items_(static_cast<T*>(std::malloc(size_t(bytes())))) { poison(); }
    explicit Buffer(const std::vector<T>& from) : Buffer(int64_t(from.size())) {
        for (int64_t i = 0; i < count_; i++) items_[i] = from[size_t(i)];
    }
    ~Buffer() { std::free(items_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    T* get() const { return items_; }
    T& operator[](int64_t i) const { return items_[i]; }
    int64_t count() const { return count_; }
    int64_t bytes() const { return count_ * int64_t(sizeof(T)); }
    void poison() {
        if (count_) std::memset(static_cast<void*>(items_), 0xFF, size_t(bytes()));
    }

  private:
    int64_t count_;
    T* items_;
};

// Rows of a wider buffer: they start anywhere, and the last one ends with the buffer. What lies between is NaN.
class Matrix {
  public:
    Matrix(Random& random, int64_t rows, int64_t width)
        : rows_(rows), width_(width), offset_(random.below(4)), stride_(width + random.below(4)),
          items_(rows ? offset_ + (rows - 1) * stride_ + width : 0) {}

    float* get() const { return rows_ ? items_.get() + offset_ : items_.get(); }
    int64_t stride() const { return stride_; }
    void poison() { items_.poison(); }
    Matrix& fill(Random& random, float scale = 1.0f) {
        for (int64_t r = 0; r < rows_; r++)
            for (int64_t i = 0; i < width_; i++) get()[r * stride_ + i] = scale * random.value();
        return *this;
    }
    // Every row, checked: all of it was written, and nothing beside it.
    void read(Outputs& into) const {
        for (int64_t i = 0; i < items_.count(); i++) {
            int64_t at = i - offset_;
            bool is_row = at >= 0 && at % stride_ < width_;
            uint32_t bits;
            std::memcpy(&bits, &items_[i], 4);
            if (is_row && !(items_[i] - items_[i] == 0.0f)) fail("a number of the output is not finite");
            if (!is_row && bits != 0xFFFFFFFF) fail("something beside a row was written");
            if (is_row) into.push_back(items_[i]);
        }
    }

  private:
    int64_t rows_, width_, offset_, stride_;
    Buffer<float> items_;
};

// Sequences of one step. A case is a list of these.
struct Seq {
    int context, definite;
    std::vector<int> parents;  // of every row

    static Seq chain(int context, int rows, int definite) {
        Seq seq = {context, definite, {}};
        for (int i = 0; i < rows; i++) seq.parents.push_back(i - 1);
        return seq;
    }
    static Seq tree(Random& random, int context, int rows, int definite) {
        Seq seq = chain(context, definite, definite);
        for (int i = definite; i < rows; i++) seq.parents.push_back(random.below(i + 1 - (i > 0)) - (i == 0));
        return seq;
    }
    // Long branches, and rows that wait for their second child: the most states that a tree needs at once.
    static Seq comb(int context, int definite) {
        Seq seq = chain(context, 32, definite);
        for (int i = 0; i < 32; i++) seq.parents.push_back(i);
        return seq;
    }
    int rows() const { return int(parents.size()); }
    int depth(int row) const { return parents[size_t(row)] < 0 ? 0 : 1 + depth(parents[size_t(row)]); }
};

// The arrays of a step, each of exactly the size that op.h states. Pages are in random order.
class StepRows {
  public:
    StepRows(Random& random, const std::vector<Seq>& seqs) {
        std::vector<int32_t> positions, ids, starts = {0}, contexts, definite, parents, source, destination;
        std::vector<int> pages_of;
        int width = 0;
        for (const Seq& seq : seqs) {
            for (int i = 0; i < seq.rows(); i++) {
                positions.push_back(seq.context + seq.depth(i));
                ids.push_back(int32_t(contexts.size()));
                parents.push_back(seq.parents[size_t(i)]);
            }
            starts.push_back(int32_t(positions.size()));
            contexts.push_back(seq.context);
            definite.push_back(seq.definite);
            pages_of.push_back((seq.context + seq.rows() + PAGE_TOKENS - 1) / PAGE_TOKENS);
            num_pages += pages_of.back();
            if (pages_of.back() > width) width = pages_of.back();
        }
        int n = int(seqs.size());
        std::vector<int32_t> order = shuffled(random, num_pages), slots = shuffled(random, 2 * n);
        std::vector<int32_t> table(size_t(n) * size_t(width), INT32_MAX);  // where there is no page
        std::vector<int64_t> mapping;
        for (int b = 0, next = 0; b < n; b++) {
            for (int i = 0; i < pages_of[size_t(b)]; i++) table[size_t(b * width + i)] = order[size_t(next++)];
            for (int i = 0; i < seqs[size_t(b)].rows(); i++) {
                int at = seqs[size_t(b)].context + i;
                int64_t page = table[size_t(b * width + at / PAGE_TOKENS)];
                mapping.push_back(page * PAGE_TOKENS + at % PAGE_TOKENS);
            }
            source.push_back(slots[size_t(2 * b)]);
            destination.push_back(slots[size_t(2 * b + random.below(2))]);  // in place for some
        }
        step.num_rows = starts.back(), step.num_seqs = n;
        step.positions = keep(positions), step.seq_ids = keep(ids), step.starts = keep(starts);
        step.contexts = keep(contexts), step.num_definite = keep(definite), step.parents = keep(parents);
        step.state_source = keep(source), step.state_destination = keep(destination);
        slots_ = std::make_unique<Buffer<int64_t>>(mapping);
        group = {slots_->get(), keep(table), width, keep(contexts), nullptr, nullptr};
        step.groups = &group, step.num_groups = 1;
    }

    // Every sequence begins on the first `pages` pages of the one before it.
    void share(int pages) {
        std::vector<int32_t> table(group.block_table, group.block_table + step.num_seqs * group.block_width), shared = {0};
        for (int b = 1; b < step.num_seqs; b++) {
            for (int i = 0; i < pages; i++)
                table[size_t(b * group.block_width + i)] = table[size_t((b - 1) * group.block_width + i)];
            shared.push_back(pages * PAGE_TOKENS);
        }
        group.block_table = keep(table), group.num_shared = keep(shared);
    }

    StepRows(const StepRows&) = delete;
    StepRows& operator=(const StepRows&) = delete;

    Step step = {};
    PageGroup group = {};
    int num_pages = 0;

    int32_t* keep(const std::vector<int32_t>& values) {
        kept_.push_back(std::make_unique<Buffer<int32_t>>(values));
        return kept_.back()->get();
    }

  private:
    static std::vector<int32_t> shuffled(Random& random, int n) {
        std::vector<int32_t> order;
        for (int i = 0; i < n; i++) {
            order.push_back(i);
            std::swap(order[size_t(i)], order[size_t(random.below(i + 1))]);
        }
        return order;
    }

    std::vector<std::unique_ptr<Buffer<int32_t>>> kept_;
    std::unique_ptr<Buffer<int64_t>> slots_;
};

// Runs lists of operations, and prints a line for each: what ran, and a sum over the outputs.
//
// library: where operations come from (null: those that are compiled into this program).
class Runner {
  public:
    explicit Runner(const char* library)
        : library_(library ? dlopen(library, RTLD_NOW) : nullptr), teams_{team_new(1, 200000), team_new(3, 20000)} {
        if (library && !library_) fail(dlerror());
    }
    ~Runner() {
        for (void* team : teams_) team_free(team);
    }
    Runner(const Runner&) = delete;
    Runner& operator=(const Runner&) = delete;

    Op op(const std::string& name, ChunksFn chunks, RunFn run, const void* args) const {
        if (!library_) return {chunks, run, args};
        void *theirs = dlsym(library_, (name + "_chunks").c_str()), *runs = dlsym(library_, (name + "_run").c_str());
        if (!theirs || !runs) fail(dlerror());
        return {reinterpret_cast<ChunksFn>(theirs), reinterpret_cast<RunFn>(runs), args};
    }

    // Runs `ops` by one thread, then by three. `reset` prepares the outputs, `read` appends them to a list; the lists
    // must be the same bits. left: run again while it is above 0.
    void run(
        const char* name, const Ops& ops, const Step& step, const std::function<void()>& reset,
        const std::function<void(Outputs&)>& read, const int64_t* left = nullptr
    ) const {
        Outputs outputs[2];
        for (int i = 0; i < 2; i++) {
            reset();
            if (left) team_run_while(teams_[i], ops.data(), int64_t(ops.size()), &step, left);
            else team_run(teams_[i], ops.data(), int64_t(ops.size()), &step);
            read(outputs[i]);
        }
        size_t size = outputs[0].size();
        if (size != outputs[1].size() || (size && std::memcmp(outputs[0].data(), outputs[1].data(), size * 4)))
            fail("other bits with three threads");
        uint64_t sum = 14695981039346656037u;
        for (float x : outputs[0]) {
            uint32_t bits;
            std::memcpy(&bits, &x, 4);
            sum = (sum ^ bits) * 1099511628211u;
        }
        std::printf("%s %016llx\n", name, static_cast<unsigned long long>(sum));
    }

  private:
    void* library_;
    void* teams_[2];
};

// The entry of operation `name` for a list that `runner` runs.
#define OP(name, args) runner.op(#name, name##_chunks, name##_run, &args)

// All families. A program may be compiled for some of them alone: -DFAMILIES=X(vectors)X(linear)
#ifndef FAMILIES
#define FAMILIES                                                                                                  \
    X(vectors) X(linear) X(pointwise) X(elementwise) X(attention) X(recurrent) X(scan) X(fftconv) X(sample)       \
    X(ahead) X(bandwidth) X(gather) X(logprobs) X(lora) X(mask) X(move)
#endif

#define X(family) void drive_##family(const Runner&);
FAMILIES
#undef X

}  // namespace driver
