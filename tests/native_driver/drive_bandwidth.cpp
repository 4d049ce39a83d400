#include "native/bandwidth.cpp"
#include "driver.h"

void driver::drive_bandwidth(const Runner& runner) {
    Random random(5);
    for (int64_t size : {1024, 64 << 10, (64 << 10) + 1024, 200 << 10}) {
        Buffer<uint8_t> data(size);
        for (int64_t i = 0; i < size; i++) data[i] = uint8_t(random.word());
        Buffer<int32_t> sums(ceil_div(size, READ_CHUNK));
        ReadArgs args = {data.get(), size, sums.get()};
        runner.run("read_bytes", {OP(read_bytes, args)}, Step{}, [&] { sums.poison(); }, [&](Outputs& out) {
            for (int64_t i = 0; i < sums.count(); i++) out.push_back(float(sums[i]));
        });
    }
}
