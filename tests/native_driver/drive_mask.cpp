#include "driver.h"
#include "sampling/mask.cpp"

void driver::drive_mask(const Runner& runner) {
    Random random(16);
    for (int width : {1, 7, 8, 9, 64, 1000})
        for (int num_bytes : {0, 1, 125}) {
            Buffer<float> x(width);
            Buffer<uint8_t> allowed(num_bytes);
            for (int i = 0; i < num_bytes; i++) allowed[i] = uint8_t(random.one_of({0, 255, int(random.below(256))}));
            MaskArgs args = {x.get(), allowed.get(), width, num_bytes};
            auto reset = [&] {
                for (int i = 0; i < width; i++) x[i] = float(i % 9) - 4.0f;
            };
            runner.run("mask", {OP(mask, args)}, Step{}, reset, [&](Outputs& out) {
                for (int i = 0; i < width; i++) {
                    bool is_allowed = i / 8 < num_bytes && (allowed[i / 8] >> i % 8 & 1);
                    if (x[i] != (is_allowed ? float(i % 9) - 4.0f : -INFINITY)) fail("not what the mask says");
                    out.push_back(is_allowed ? x[i] : -1e9f);
                }
            });
        }
}
