// The read-only probe behind every stated bound: all threads read a buffer once, as the products read weights.
#include "op.h"
#include "vec.h"

using namespace vec;

namespace {

struct ReadArgs {
    const uint8_t* data;
    int64_t size;  // bytes, a multiple of 1024
    int32_t* sums;  // [chunks], so that nothing is optimised away
};

constexpr int64_t READ_CHUNK = 64 << 10;

int64_t chunks(const ReadArgs& a, const Step&) { return ceil_div(a.size, READ_CHUNK); }

void run(const ReadArgs& a, const Step&, int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; chunk++) {
        const uint8_t *p = a.data + chunk * READ_CHUNK, *end = a.data + a.size;
        if (end - p > READ_CHUNK) end = p + READ_CHUNK;
        I32 s[4] = {set1i(0), set1i(0), set1i(0), set1i(0)};
        for (; p < end; p += 256) {
            __builtin_prefetch(p + 4096);
            for (int i = 0; i < 4; i++) s[i] = add(s[i], loadi(p + 64 * i));
        }
        int32_t t[16];
        storei(t, add(add(s[0], s[1]), add(s[2], s[3])));
        a.sums[chunk] = t[0] ^ t[5] ^ t[10] ^ t[15];
    }
}

}  // namespace

STRETTO_OP(read_bytes, ReadArgs, data, size, sums)
