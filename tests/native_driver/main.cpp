// Runs every operation of the kernels over buffers of exactly the size that it may touch. Made to be compiled with
// sanitizers; prints `operations sum` lines, which are the same for every compiler and instruction-set level.
//
//     driver [library]   library: takes the operations from there instead
#include "driver.h"

int main(int count, char** words) {
    std::setvbuf(stdout, nullptr, _IOLBF, 1 << 12);  // what ran before a failure is seen
    driver::Runner runner(count > 1 ? words[1] : nullptr);
#define X(family) driver::drive_##family(runner);
    FAMILIES
#undef X
}
