#pragma once
// Instructions that this CPU lacks, so that kernels for them run here, slowly: put before each kernel file by -DEMULATE=
// (CMakeLists.txt). SIMDe's functions take the names of the intrinsics; of those that SIMDe 0.7.4 lacks there are ours.
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define SIMDE_ENABLE_NATIVE_ALIASES
#define SIMDE_NO_INLINE  // in line, they would take minutes to compile
#include <simde/x86/avx512.h>

namespace emulated {

// a vector's lanes one by one; T is what they are
template <class T, class V>
struct Lanes {
    T at[sizeof(V) / sizeof(T)];

    Lanes() = default;
    explicit Lanes(const V & v) { std::memcpy(at, &v, sizeof(v)); }
    operator V() const {
        V v;
        std::memcpy(&v, at, sizeof(v));
        return v;
    }
};

using Floats = Lanes<float, __m512>;
using Integers = Lanes<int32_t, __m512i>;

inline __m512 cvtph_ps(__m256i halves) {
    const Lanes<__m128i, __m256i> in(halves);
    Lanes<__m256, __m512> out;
    for (int i = 0; i < 2; ++i) out.at[i] = _mm256_cvtph_ps(in.at[i]);
    return out;
}

inline __m512 cvtepi32_ps(__m512i integers) {
    const Integers in(integers);
    Floats out;
    for (int i = 0; i < 16; ++i) out.at[i] = (float) in.at[i];
    return out;
}

// upper and lower half, then those of the half, and so on, as the compilers' own
template <class Operation>
float reduced(__m512 v, const Operation & f) {
    Floats x(v);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) x.at[i] = f(x.at[i], x.at[i + half]);
    return x.at[0];
}

inline float reduce_add_ps(__m512 v) {
    return reduced(v, [](float a, float b) { return a + b; });
}

inline float reduce_max_ps(__m512 v) {
    return reduced(v, [](float a, float b) { return a > b ? a : b; });
}

inline __m512 mask_i32gather_ps(__m512 otherwise, __mmask16 mask, __m512i offsets, const float * p) {
    const Integers at(offsets);
    Floats out(otherwise);
    for (int i = 0; i < 16; ++i)
        if (mask >> i & 1) out.at[i] = p[at.at[i]];
    return out;
}

inline __m512 maskz_loadu_ps(__mmask16 mask, const float * p) {
    Floats out(_mm512_setzero_ps());
    for (int i = 0; i < 16; ++i)
        if (mask >> i & 1) out.at[i] = p[i];
    return out;
}

inline void mask_storeu_epi32(void * p, __mmask16 mask, __m512i integers) {
    const Integers in(integers);
    for (int i = 0; i < 16; ++i)
        if (mask >> i & 1) std::memcpy((char *) p + 4 * i, in.at + i, 4);
}

// to the nearest, ties to even; denormals become zero, as the instruction has it
inline uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    if (std::isnan(x)) return (uint16_t) (bits >> 16 | 0x40);
    if ((bits & 0x7f800000) == 0) return (uint16_t) (bits >> 16 & 0x8000);
    return (uint16_t) ((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline __m512bh cvtne2ps_pbh(__m512 high, __m512 low) {
    const Floats h(high), l(low);
    Lanes<uint16_t, __m512bh> out;
    for (int i = 0; i < 16; ++i) {
        out.at[i] = to_bf16(l.at[i]);
        out.at[16 + i] = to_bf16(h.at[i]);
    }
    return out;
}

inline __m512 zextps256_ps512(__m256 low) {
    Lanes<__m256, __m512> out;
    out.at[0] = low;
    out.at[1] = _mm256_setzero_ps();
    return out;
}

#ifdef EMULATED_AMX
// rows of bytes, whose shapes the last configuration said
struct Tile {
    uint8_t rows[16][64];
};

inline thread_local Tile tiles[8];
inline thread_local uint8_t configuration[64];

inline int rows_of(int t) { return configuration[48 + t]; }

inline int bytes_of(int t) {
    uint16_t bytes;
    std::memcpy(&bytes, configuration + 16 + 2 * t, sizeof(bytes));
    return bytes;
}

inline void tile_loadconfig(const void * p) {
    std::memcpy(configuration, p, sizeof(configuration));
    std::memset(tiles, 0, sizeof(tiles));
}

inline void tile_release() { std::memset(configuration, 0, sizeof(configuration)); }

inline void tile_zero(int t) { tiles[t] = {}; }

inline void tile_loadd(int t, const void * p, int64_t stride) {
    tiles[t] = {};
    for (int i = 0; i < rows_of(t); ++i) std::memcpy(tiles[t].rows[i], (const char *) p + i * stride, bytes_of(t));
}

inline void tile_stored(int t, void * p, int64_t stride) {
    for (int i = 0; i < rows_of(t); ++i) std::memcpy((char *) p + i * stride, tiles[t].rows[i], bytes_of(t));
}

inline void tile_dpbsud(int c, int a, int b) {
    for (int i = 0; i < rows_of(c); ++i)
        for (int j = 0; j < bytes_of(c) / 4; ++j) {
            int32_t sum;
            std::memcpy(&sum, tiles[c].rows[i] + 4 * j, sizeof(sum));
            for (int k = 0; k < bytes_of(a); ++k)
                sum += (int8_t) tiles[a].rows[i][k] * tiles[b].rows[k / 4][4 * j + k % 4];
            std::memcpy(tiles[c].rows[i] + 4 * j, &sum, sizeof(sum));
        }
}
#endif

}  // namespace emulated

#ifdef EMULATED_AMX
#define __AMX_INT8__ 1
#undef _tile_loadd  // macros, as the numbers of registers are parts of instructions
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbsud
#define _tile_loadconfig(p) emulated::tile_loadconfig(p)
#define _tile_release() emulated::tile_release()
#define _tile_zero(t) emulated::tile_zero(t)
#define _tile_loadd(t, p, stride) emulated::tile_loadd(t, p, stride)
#define _tile_stored(t, p, stride) emulated::tile_stored(t, p, stride)
#define _tile_dpbsud(c, a, b) emulated::tile_dpbsud(c, a, b)
#endif

#define _mm512_cvtph_ps(a) emulated::cvtph_ps(a)
#define _mm512_cvtepi32_ps(a) emulated::cvtepi32_ps(a)
#define _mm512_reduce_add_ps(a) emulated::reduce_add_ps(a)
#define _mm512_reduce_max_ps(a) emulated::reduce_max_ps(a)
#undef _mm512_mask_i32gather_ps  // a macro where the compiler does not optimise
#define _mm512_mask_i32gather_ps(a, mask, offsets, p, scale) emulated::mask_i32gather_ps(a, mask, offsets, p)
#define _mm512_maskz_loadu_ps(mask, p) emulated::maskz_loadu_ps(mask, p)
#define _mm512_mask_storeu_epi32(p, mask, a) emulated::mask_storeu_epi32(p, mask, a)
#define _mm512_cvtne2ps_pbh(high, low) emulated::cvtne2ps_pbh(high, low)
#define _mm512_zextps256_ps512(a) emulated::zextps256_ps512(a)
#define _mm512_kortestz(a, b) ((__mmask16) ((a) | (b)) == 0)
#define _mm256_dpbusd_avx_epi32(sum, a, b) simde_mm256_dpbusd_epi32(sum, a, b)

#ifdef EMULATED_AVX512
#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512DQ__ 1
#define __AVX512VL__ 1
#define __AVX512BF16__ 1
#define __AVX512VNNI__ 1
#else
#define __AVXVNNI__ 1
#endif
