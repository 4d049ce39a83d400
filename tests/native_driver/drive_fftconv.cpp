#include "driver.h"
#include "fftconv/fftconv.cpp"

namespace driver {
namespace {

void drive(const Runner& runner, Random& random, const std::vector<Seq>& seqs, int channels, int num_taps) {
    StepRows rows(random, seqs);
    int64_t padded = ceil_div(channels, LANES) * LANES, slots = int64_t(rows.num_pages) * PAGE_TOKENS;
    Buffer<float> taps(num_taps * padded), wide(slots * channels);
    for (int64_t i = 0; i < taps.count(); i++) taps[i] = 0.0f;
    for (int tap = 0; tap < num_taps; tap++)
        for (int i = 0; i < channels; i++) taps[tap * padded + i] = random.value();
    Buffer<uint16_t> narrow(slots * channels);
    for (int64_t i = 0; i < wide.count(); i++) {
        wide[i] = random.value();
        uint32_t bits;
        std::memcpy(&bits, &wide[i], 4);
        narrow[i] = uint16_t(bits >> 16);
    }
    Matrix y(random, rows.step.num_rows, channels);
    Buffer<int8_t> codes(slots * channels);
    Buffer<float> scales(slots);
    for (int64_t i = 0; i < codes.count(); i++) codes[i] = int8_t(wide[i] * 20);
    for (int64_t i = 0; i < slots; i++) scales[i] = random.value();
    for (int format : {page_format::F32, page_format::BF16, page_format::INT8}) {
        const void* all[] = {wide.get(), narrow.get(), codes.get()};
        const void* pages = all[format];
        FftconvArgs args = {channels,        num_taps, format, int32_t(padded), 0, 0, taps.get(), static_cast<const uint8_t*>(pages),
                            scales.get(),
                            y.get(), y.stride()};
        runner.run("fftconv", {OP(fftconv, args)}, rows.step, [&] { y.poison(); }, [&](Outputs& out) { y.read(out); });
    }
}

}  // namespace

void drive_fftconv(const Runner& runner) {
    Random random(10);
    for (int channels : {1, 15, 16, 33, 70})
        for (int num_taps : {1, 4, 40}) {
            drive(runner, random, {Seq::chain(0, 1, 1)}, channels, num_taps);
            drive(runner, random, {Seq::chain(37, 1, 1), Seq::chain(0, 9, 9), Seq::chain(20, 5, 2)}, channels, num_taps);
            drive(runner, random, {Seq::tree(random, 18, 12, 3), Seq::comb(33, 2)}, channels, num_taps);
        }
}

}  // namespace driver
