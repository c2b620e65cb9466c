#pragma once
// AMX: registers of up to 16 rows of 64 bytes, and products of two of these as matrices. A CPU that has it has AVX-512 and VNNI,
// whose layout of four neighbouring bytes of k in a word it shares.
//
// Compiled, and checked emulated (scripts/engine/checks); it has never run on a CPU with AMX.
#include "packed-simd.h"

#ifdef PACKED_AMX

#ifndef EMULATED_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace packed {

// Linux gives its registers to processes that ask: Documentation/arch/x86/xstate.rst.
inline bool amx_granted() {
#ifdef EMULATED_AMX
    return true;
#else
    constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
    static const bool granted = syscall(SYS_arch_prctl, request, tile_data) == 0;
    return granted;
#endif
}

// The shapes of registers 0 (sums), 1 (activations) and 2 (weights) while it lives: n rows of activations, in groups of w words.
class AmxShapes {
  public:
    AmxShapes(int n, int w) {
        alignas(64) Configuration shapes = {};
        shapes.palette = 1;
        shapes.rows[0] = shapes.rows[1] = (uint8_t) n;
        shapes.rows[2] = (uint8_t) w;
        shapes.bytes[0] = shapes.bytes[2] = 64;
        shapes.bytes[1] = (uint16_t) (4 * w);
        _tile_loadconfig(&shapes);
    }
    ~AmxShapes() { _tile_release(); }  // what is in use is saved at each change of threads

    AmxShapes(const AmxShapes &) = delete;
    AmxShapes & operator=(const AmxShapes &) = delete;

  private:
    struct Configuration {  // as the instruction reads it
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    };
};

// One group: the products of activations, rows lds words apart, and of a vector of 16 rows of weights for each word of k,
// which lie `vectors` vectors apart; sums gets 16 words for each row of activations.
inline void amx_products(const float * s, int64_t lds, const float * v, int vectors, float * sums) {
    _tile_zero(0);
    _tile_loadd(1, s, lds * 4);
    _tile_loadd(2, v, vectors * 64);
    _tile_dpbsud(0, 1, 2);  // bytes with a sign times bytes without
    _tile_stored(0, sums, 64);
}

}  // namespace packed

#endif
