#include "driver.h"
#include "sampling/logprobs.cpp"

void driver::drive_logprobs(const Runner& runner) {
    Random random(15);
    for (int width : {1, 7, 1000})
        for (int num_top : {0, 1, 5})
            if (num_top <= width) {
                Buffer<float> x(width), logprob(1), logprobs(num_top);
                for (int i = 0; i < width; i++) x[i] = i % 7 == 3 ? -HUGE_VALF : float(random.below(9)) - 4.0f;
                Buffer<int32_t> ids(num_top);
                LogprobsArgs args = {x.get(), width, 0, num_top, 0, logprob.get(), ids.get(), logprobs.get()};
                auto reset = [&] { logprob.poison(), ids.poison(), logprobs.poison(); };
                runner.run("row_logprobs", {OP(row_logprobs, args)}, Step{}, reset, [&](Outputs& out) {
                    out.push_back(logprob[0]);
                    for (int i = 0; i < num_top; i++) out.push_back(float(ids[i])), out.push_back(logprobs[i]);
                });
            }
}
