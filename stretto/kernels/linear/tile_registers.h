// The tile registers of AMX: what the products need of them, and how they are asked for.
//
//     STRETTO_TILES   a header to include instead of the compiler's: what executes tile instructions elsewhere
#pragma once

#include <cstdint>

#if defined(STRETTO_TILES)
#include STRETTO_TILES
#else
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tile_registers {

#if !defined(STRETTO_TILES)
// Linux keeps these registers for processes that have asked. Once for all threads, when the library is loaded; build.py
// chooses this level only where the answer is yes.
inline const long permission = syscall(SYS_arch_prctl, 0x1023, 18);  // ARCH_REQ_XCOMP_PERM, XTILEDATA
#endif

// Rows, and bytes of a row, of every register. As the processor reads it.
struct alignas(64) Shapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    constexpr Shapes& set(int first, int last, int num_rows, int bytes) {
        for (int i = first; i <= last; i++) rows[i] = uint8_t(num_rows), row_bytes[i] = uint16_t(bytes);
        return *this;
    }
};

// gcc 12 does not know that loads of tiles and of shapes read memory, and would drop the stores before them.
#define TILE_MEMORY asm volatile("" ::: "memory")

// Shapes of this thread, until it goes out of scope: other libraries may use the registers between two operations.
class Shaped {
  public:
    Shaped() = default;
    ~Shaped() {
        if (now_) _tile_release();
    }
    Shaped(const Shaped&) = delete;
    Shaped& operator=(const Shaped&) = delete;

    void become(const Shapes& shapes) {
        if (now_ == &shapes) return;
        TILE_MEMORY;
        _tile_loadconfig(&shapes);
        now_ = &shapes;
    }

  private:
    const Shapes* now_ = nullptr;
};

}  // namespace tile_registers
