#include "driver.h"
#include "linear/gather.cpp"

void driver::drive_gather(const Runner& runner) {
    Random random(14);
    for (int64_t row_bytes : {1, 36, 360})
        for (int count : {1, 32, 97}) {
            const int rows = 101;
            Buffer<uint8_t> source(rows * row_bytes), out_rows(count * row_bytes);
            for (int64_t i = 0; i < source.count(); i++) source[i] = uint8_t(random.word());
            Buffer<int32_t> order(count);
            for (int i = 0; i < count; i++) order[i] = random.below(rows);
            GatherArgs args = {source.get(), row_bytes, count, order.get(), out_rows.get()};
            runner.run("gather_rows", {OP(gather_rows, args)}, Step{}, [&] { out_rows.poison(); }, [&](Outputs& out) {
                for (int64_t i = 0; i < out_rows.count(); i++) out.push_back(float(out_rows[i]));
            });
        }
}
