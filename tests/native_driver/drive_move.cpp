#include "driver.h"
#include "native/move.cpp"

// Tokens change places on pages: some of them onto the place of another that moves, too.
void driver::drive_move(const Runner& runner) {
    Random random(12);
    for (int by_lanes : {0, 1})
        for (int item_bytes : {1, 2, 4})
            for (int numbers : {1, 3, 64}) {
                const int layers = 3, pages = 4;
                int64_t layer_bytes = int64_t(pages) * PAGE_TOKENS * numbers * item_bytes;
                Buffer<uint8_t> memory(layers * layer_bytes);
                Buffer<int64_t> source(std::vector<int64_t>{17, 18, 40, 5, 63}), destination(std::vector<int64_t>{16, 17, 18, 19, 0});
                MoveArgs args = {memory.get(), layer_bytes, layers, numbers, item_bytes, by_lanes, source.count(),
                                 source.get(), destination.get()};
                auto reset = [&] {
                    Random again(13);
                    for (int64_t i = 0; i < memory.count(); i++) memory[i] = uint8_t(again.word());
                };
                runner.run("move_tokens", {OP(move_tokens, args)}, Step{}, reset, [&](Outputs& out) {
                    for (int64_t i = 0; i < memory.count(); i++) out.push_back(float(memory[i]));
                });
            }
}
