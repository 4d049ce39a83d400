// From a row of logits to a token: temperature, top_k, top_p, min_p, and the Gumbel-max draw.
//
//     y = (x - max x) / temperature         token = argmax over survivors of (y + gumbel), the lower id on a tie
//
// Noise is Philox4x32-10 with key (seed), counter (token / 4, position, purpose, 0) and word token % 4, as in
// kernels/sampling/reference.py: the draw depends on the row's own law, seed and position and on nothing else.
#include <algorithm>
#include <vector>

#include "functions.h"
#include "op.h"
#include "sampling/sample.h"

using namespace vec;
using sampling::Row;

namespace {

struct ChooseArgs {
    int64_t num_rows;
    Row* rows;
};

// -- noise ------------------------------------------------------------------------------------------------------------

constexpr uint32_t M0 = 0xD2511F53, M1 = 0xCD9E8D57, W0 = 0x9E3779B9, W1 = 0xBB67AE85;

// Words of 64 tokens from `first` on, a multiple of 4.
void noise_words(const Row& row, uint32_t first, uint32_t* words) {
    int32_t blocks[LANES];
    for (int i = 0; i < LANES; i++) blocks[i] = int32_t(first / 4 + uint32_t(i));
    I32 x[4] = {loadi(blocks), set1i(int32_t(row.position)), set1i(int32_t(row.purpose)), set1i(0)};
    uint32_t key0 = row.key[0], key1 = row.key[1];
    for (int round = 0; round < 10; round++, key0 += W0, key1 += W1) {
        Wide p = wide_mul(x[0], M0), q = wide_mul(x[2], M1);
        x[0] = bxor(bxor(q.high, x[1]), set1i(int32_t(key0)));
        x[1] = q.low;
        x[2] = bxor(bxor(p.high, x[3]), set1i(int32_t(key1)));
        x[3] = p.low;
    }
    uint32_t word[4][LANES];
    for (int j = 0; j < 4; j++) storei(word[j], x[j]);
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < 4; j++) words[4 * i + j] = word[j][i];
}

uint32_t noise_word(const Row& row, uint32_t token) {
    uint32_t x[4] = {token / 4, row.position, row.purpose, 0}, key0 = row.key[0], key1 = row.key[1];
    for (int round = 0; round < 10; round++, key0 += W0, key1 += W1) {
        uint64_t p = uint64_t(M0) * x[0], q = uint64_t(M1) * x[2];
        uint32_t y[4] = {uint32_t(q >> 32) ^ x[1] ^ key0, uint32_t(q), uint32_t(p >> 32) ^ x[3] ^ key1, uint32_t(p)};
        std::memcpy(x, y, sizeof x);
    }
    return x[token % 4];
}

float gumbel(uint32_t word) { return float(-std::log(-std::log((double(word) + 0.5) * 0x1p-32))); }

// -- survivors --------------------------------------------------------------------------------------------------------

// A token with its logit. Likelier ones come first; of equals, the lower id. top_k and top_p keep what is not after an
// `edge`; min_p is a bound of its own.
struct Item {
    float logit;
    int32_t id;

    bool operator<(const Item& other) const {
        return logit > other.logit || (logit == other.logit && id < other.id);
    }
};

class Survivors {
  public:
    explicit Survivors(const Row& row) : row_(row), top_(row.top()) {}

    Item edge() {
        bool is_cut = row_.top_k > 0 && row_.top_k < row_.width;
        if (is_cut) likeliest(row_.top_k);
        if (row_.top_p >= 1) return is_cut ? items_.back() : everything();
        double total = 0, before = 0;
        if (is_cut) {
            for (const Item& item : items_) total += mass(item.logit);
        } else {
            total = mass_of_all();
            likeliest(std::min(row_.width, FIRST_LOOK));
        }
        bool has_all = is_cut || int(items_.size()) < FIRST_LOOK;
        return nucleus(row_.top_p * total, before) || has_all ? last_ : nucleus_of_all(row_.top_p * total);
    }

  private:
    static constexpr int FIRST_LOOK = 256;  // of the likeliest tokens: mostly enough for top_p
    static constexpr int BINS = 1024;       // of logits, else: 32 per unit

    float y(float x) const { return (x - top_) / row_.temperature; }
    double mass(float x) const { return std::exp(double(y(x))); }

    // The `n` likeliest tokens in order (fewer if fewer are possible): a heap whose top is the worst of them.
    void likeliest(int n) {
        items_.clear();
        F32 edge = set1(-INFINITY);
        for (int32_t id = 0; id < row_.width; id += LANES) {
            int some = std::min(LANES, row_.width - id);
            uint32_t above = lanes_less(edge, load_n(row_.x + id, some)) & ((1u << some) - 1);
            for (; above; above &= above - 1) {
                Item item = {row_.x[id + __builtin_ctz(above)], id + __builtin_ctz(above)};
                if (int(items_.size()) == n) {
                    if (!(item < items_.front())) continue;
                    std::pop_heap(items_.begin(), items_.end());
                    items_.pop_back();
                }
                items_.push_back(item);
                std::push_heap(items_.begin(), items_.end());
                if (int(items_.size()) == n) edge = set1(items_.front().logit);
            }
        }
        std::sort_heap(items_.begin(), items_.end());
    }

    // The first of `items_` with which the mass, `before` it at first, reaches `wanted`: whether there is one.
    bool nucleus(double wanted, double before) {
        for (const Item& item : items_) {
            last_ = item;
            before += mass(item.logit);
            if (before >= wanted) return true;
        }
        return false;
    }

    // The sum of e^y over all tokens: lanes in fp32 for a while, then in fp64.
    double mass_of_all() const {
        constexpr int32_t WHILE = 64 * LANES;
        double total = 0;
        for (int32_t first = 0; first < row_.width; first += WHILE) {
            F32 lanes = set1(0.0f), top = set1(top_), temperature = set1(row_.temperature);
            int32_t id = first, end = std::min(row_.width, first + WHILE);
            for (; id + LANES <= end; id += LANES)
                lanes = add(lanes, exp(div(sub(load(row_.x + id), top), temperature)));
            total += sum(lanes);
            for (; id < end; id++) total += mass(row_.x[id]);
        }
        return total;
    }

    // Of up to 16 tokens: the bin of every logit, lower where logits are higher, and its mass.
    void bins(int32_t id, int some, int32_t* bin, float* masses) const {
        F32 depth = div(sub(set1(top_), load_n(row_.x + id, some)), set1(row_.temperature));
        storei(bin, to_int(max(set1(0.0f), min(mul(depth, set1(32.0f)), set1(BINS - 1.0f)))));  // NaN: the last one
        store(masses, exp(sub(set1(0.0f), depth)));
    }

    // Only the bin in which the mass reaches `wanted` is put in order.
    Item nucleus_of_all(double wanted) {
        double by_bin[BINS] = {}, before = 0;
        int32_t bin[LANES], b = 0;
        float masses[LANES];
        for (int32_t id = 0, some; id < row_.width; id += LANES) {
            bins(id, some = std::min(LANES, row_.width - id), bin, masses);
            for (int i = 0; i < some; i++) by_bin[bin[i]] += double(masses[i]);
        }
        for (; b < BINS - 1 && before + by_bin[b] < wanted; b++) before += by_bin[b];
        items_.clear();
        for (int32_t id = 0, some; id < row_.width; id += LANES) {
            bins(id, some = std::min(LANES, row_.width - id), bin, masses);
            for (int i = 0; i < some; i++)
                if (bin[i] == b && row_.x[id + i] > -INFINITY) items_.push_back({row_.x[id + i], id + i});
        }
        std::sort(items_.begin(), items_.end());
        return nucleus(wanted, before) ? last_ : everything();
    }

    Item everything() const { return {-INFINITY, row_.width}; }

    const Row& row_;
    const float top_;
    Item last_ = {};
    std::vector<Item> items_;
};

// -- the draw ---------------------------------------------------------------------------------------------------------

// Noise above g happens with probability 1 - exp(-e^-g) <= e^-g, so a token wins only if 1 - u <= e^(y - best): nearly
// all fail this test, and the two logarithms are for those that pass.
int32_t draw(const Row& row, Item edge) {
    F32 top = set1(row.top()), temperature = set1(row.temperature);
    int32_t token = *row.argmax;
    float best = gumbel(noise_word(row, uint32_t(token)));
    for (int32_t first = 0; first < row.width; first += 4 * LANES) {
        uint32_t words[4 * LANES];
        noise_words(row, uint32_t(first), words);
        for (int32_t id = first, end = std::min(row.width, first + 4 * LANES); id < end; id += LANES) {
            const uint32_t* w = words + (id - first);
            F32 x = load_n(row.x + id, std::min(LANES, end - id)), y = div(sub(x, top), temperature);
            F32 least = to_float(sub(set1i((1 << 24) - 1), shr<8>(loadi(w))));  // 2^24 (1 - u), rounded down
            F32 chance = mul(exp(sub(y, set1(best))), set1(0x1.001p24f));
            uint32_t fails = lanes_less(chance, least) | lanes_less(y, set1(row.log_min_p));
            fails |= lanes_less(x, set1(edge.logit));
            if (fails == 0xFFFF) continue;
            float scores[LANES];
            store(scores, y);
            for (int i = 0; i < LANES && id + i < end; i++) {
                if (fails >> i & 1 || edge < Item{row.x[id + i], id + i}) continue;
                float score = scores[i] + gumbel(w[i]);
                if (score > best || (score == best && id + i < token)) best = score, token = id + i;
            }
        }
    }
    return token;
}

int64_t chunks(const ChooseArgs& a, const Step&) { return a.num_rows; }

void run(const ChooseArgs& a, const Step&, int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r++) {
        Row& row = a.rows[r];
        bool is_plain = row.temperature == 0 || !std::isfinite(row.top());  // the caller refuses such a row
        row.token = is_plain ? *row.argmax : draw(row, Survivors(row).edge());
    }
}

}  // namespace

STRETTO_OP(choose, ChooseArgs, num_rows, rows)
