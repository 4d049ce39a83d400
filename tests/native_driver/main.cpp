// Runs every operation of the kernels over buffers of exactly the size that it may touch. Made to be compiled with
// sanitizers; prints `operations sum` lines, which are the same for every compiler and instruction-set level.
//
//     driver [library]   library: takes the operations from there instead
#include "driver.h"

int main(int count, char** words) {
    std::setvbuf(stdout, nullptr, _IOLBF, 1 << 12);  // what ran before a failure is seen
    driver::Runner runner(count > 1 ? words[1] : nullptr);
    driver::drive_linear(runner);
    driver::drive_pointwise(runner);
    driver::drive_elementwise(runner);
    driver::drive_attention(runner);
    driver::drive_recurrent(runner);
    driver::drive_scan(runner);
    driver::drive_fftconv(runner);
    driver::drive_sample(runner);
    driver::drive_ahead(runner);
    driver::drive_bandwidth(runner);
}
