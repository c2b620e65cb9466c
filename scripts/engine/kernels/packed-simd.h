#pragma once
// Vectors of 32-bit floats, as wide as the instruction set allows, and the choice of kernels.
//
// PACKED is defined where there are kernels at all. A "word" below is 32 bits: one float, or two BF16 values of
// neighbouring k, which the same vectors carry.
#include "ggml-cpu-impl.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define PACKED 1

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

// Vectors of 512 bits, and BF16, which needs them, are asked for by -DGGML_PACKED_AVX512: these kernels have passed
// their checks emulated (scripts/engine/checks), and never ran on a CPU that has them. Without it a CPU with AVX-512 runs the code for AVX2.
#if defined(GGML_PACKED_AVX512) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define PACKED_AVX512 1
#if defined(__AVX512BF16__) && !defined(_MSC_VER)
#define PACKED_BF16 1
#endif
#endif

// Products of bytes, in vectors as wide as those of floats. VNNI, which for 256 bits has two encodings, multiplies any; AVX2
// those whose sums fit in 16 bits.
#if defined(__AVX512VNNI__) && (defined(PACKED_AVX512) || defined(__AVX512VL__))
#define PACKED_VNNI 1
#elif defined(__AVXVNNI__) && !defined(PACKED_AVX512)
#define PACKED_VNNI 1
#endif
#if defined(PACKED_VNNI) || !defined(PACKED_AVX512)
#define PACKED_INT8 1
#endif
#if defined(PACKED_VNNI) && defined(PACKED_AVX512) && defined(__AMX_INT8__) && defined(__linux__)
#define PACKED_AMX 1
#endif

// Without it GCC 12 keeps the sums of the micro-kernel on the stack, at half of the speed.
#if defined(__clang__)
#define PACKED_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define PACKED_UNROLL _Pragma("GCC unroll 16")
#else
#define PACKED_UNROLL
#endif

namespace packed {

enum class Factors { off, f32, bf16 };

Factors factors();  // of products of floats
bool bytes();       // whether quantised weights are multiplied as bytes instead

#ifdef PACKED_AVX512

constexpr int VL = 16;  // floats in a vector
constexpr int NR = 12;  // rows of a tile: with two vectors each they leave registers for what is loaded

using vec = __m512;
using lanes = __mmask16;

inline vec load(const float * p) { return _mm512_loadu_ps(p); }
inline vec load(const float * p, lanes l) { return _mm512_maskz_loadu_ps(l, p); }
inline vec load(const ggml_fp16_t * p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p)); }
inline void store(float * p, vec v) { _mm512_storeu_ps(p, v); }
inline vec zero() { return _mm512_setzero_ps(); }
inline vec all(float x) { return _mm512_set1_ps(x); }
inline vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
inline vec add(vec a, vec b) { return _mm512_add_ps(a, b); }
inline vec sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
inline vec mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
inline vec divide(vec a, vec b) { return _mm512_div_ps(a, b); }
inline vec max(vec a, vec b) { return _mm512_max_ps(a, b); }
inline vec either(vec a, vec b) { return _mm512_or_ps(a, b); }
inline float greatest(vec a) { return _mm512_reduce_max_ps(a); }
inline float sum(vec a) { return _mm512_reduce_add_ps(a); }

// every second value of a and b together, from the first and from the second on
inline vec evens(vec a, vec b) {
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), b);
}
inline vec odds(vec a, vec b) {
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31), b);
}

// the inverse: a[0], b[0], a[1], b[1] ... of the lower and of the upper halves
inline vec interleaved_low(vec a, vec b) {
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), b);
}
inline vec interleaved_high(vec a, vec b) {
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), b);
}

// the lanes from `from` up to, not with, `to`
inline lanes lanes_between(int from, int to) { return (lanes) (((1u << to) - 1) & ~((1u << from) - 1)); }

// p[at[lane]] for each lane, 0 where the offset is negative
inline vec gather(const float * p, const int32_t * at) {
    const __m512i offsets = _mm512_loadu_si512(at);
    return _mm512_mask_i32gather_ps(zero(), _mm512_cmpge_epi32_mask(offsets, _mm512_setzero_si512()), offsets, p, 4);
}

#else

constexpr int VL = 8;
constexpr int NR = 6;

using vec = __m256;
using lanes = __m256i;

inline vec load(const float * p) { return _mm256_loadu_ps(p); }
inline vec load(const float * p, lanes l) { return _mm256_maskload_ps(p, l); }
inline vec load(const ggml_fp16_t * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
inline void store(float * p, vec v) { _mm256_storeu_ps(p, v); }
inline vec zero() { return _mm256_setzero_ps(); }
inline vec all(float x) { return _mm256_set1_ps(x); }
inline vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
inline vec add(vec a, vec b) { return _mm256_add_ps(a, b); }
inline vec sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
inline vec mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
inline vec divide(vec a, vec b) { return _mm256_div_ps(a, b); }
inline vec max(vec a, vec b) { return _mm256_max_ps(a, b); }
inline vec either(vec a, vec b) { return _mm256_or_ps(a, b); }

inline float greatest(vec a) {
    float x[VL];
    store(x, a);
    return *std::max_element(x, x + VL);
}

inline float sum(vec a) {
    float x[VL];
    store(x, a);
    return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
}

inline vec evens(vec a, vec b) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88)), 0xd8));
}
inline vec odds(vec a, vec b) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd)), 0xd8));
}
inline vec interleaved_low(vec a, vec b) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
}
inline vec interleaved_high(vec a, vec b) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
}

inline lanes lanes_between(int from, int to) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i below_to = _mm256_cmpgt_epi32(_mm256_set1_epi32(to), lane);
    return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(from), lane), below_to);
}

inline vec gather(const float * p, const int32_t * at) {
    const __m256i offsets = _mm256_loadu_si256((const __m256i *) at);
    const __m256i inside = _mm256_cmpgt_epi32(offsets, _mm256_set1_epi32(-1));
    return _mm256_mask_i32gather_ps(zero(), p, offsets, _mm256_castsi256_ps(inside), 4);
}

#endif

#ifdef PACKED_INT8

// Vectors of words that are integers, or four bytes each; words lie where floats do, and are no numbers as such.
#ifdef PACKED_AVX512

using ints = __m512i;

inline ints words(const float * p) { return _mm512_loadu_si512(p); }
inline ints all_of(int32_t word) { return _mm512_set1_epi32(word); }
inline vec floats_of(ints a) { return _mm512_cvtepi32_ps(a); }
inline ints add_words(ints a, ints b) { return _mm512_add_epi32(a, b); }

#else

using ints = __m256i;

inline ints words(const float * p) { return _mm256_loadu_si256((const __m256i *) p); }
inline ints all_of(int32_t word) { return _mm256_set1_epi32(word); }
inline vec floats_of(ints a) { return _mm256_cvtepi32_ps(a); }
inline ints add_words(ints a, ints b) { return _mm256_add_epi32(a, b); }

#endif

// sum + the products of the bytes of a, which have no sign, and those of b, which have one: four in each word, or with AVX2
// two in each half of one
inline ints add_products(ints sum, ints a, ints b) {
#if defined(PACKED_VNNI) && defined(PACKED_AVX512)
    return _mm512_dpbusd_epi32(sum, a, b);
#elif defined(PACKED_VNNI) && defined(__AVX512VNNI__)
    return _mm256_dpbusd_epi32(sum, a, b);
#elif defined(PACKED_VNNI)
    return _mm256_dpbusd_avx_epi32(sum, a, b);
#else
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, b));
#ifdef __GNUC__
    asm("" : "+x"(sum));  // without it GCC 12 loads all factors first, and has no registers left for the sums
#endif
    return sum;
#endif
}

// words + the sum of such halves, which VNNI has no need for
inline ints add_halves(ints sum, ints halves) {
#ifdef PACKED_VNNI
    (void) sum;
    return halves;
#else
    return add_words(sum, _mm256_madd_epi16(halves, _mm256_set1_epi16(1)));
#endif
}

inline ints no_ints() { return all_of(0); }

inline ints one_word(const float * p) {
    int32_t word;
    std::memcpy(&word, p, sizeof(word));
    return all_of(word);
}

#endif

#ifdef PACKED_BF16

// two vectors of floats as one of pairs: (low[0], high[0]), (low[1], high[1]), ...
inline vec pairs_of(vec low, vec high) {
    alignas(64) static const uint16_t order[32] = { 0, 16, 1, 17, 2, 18, 3, 19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                    8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31 };
    const __m512i halves = (__m512i) _mm512_cvtne2ps_pbh(high, low);
    return (vec) _mm512_permutexvar_epi16(_mm512_load_si512(order), halves);
}

// n floats along k as words of two BF16 values each; an odd one at the end is paired with zero
inline void to_pairs(const float * x, int64_t n, float * out) {
    for (int64_t i = 0; i < n; i += 2 * VL) {
        const int here = (int) std::min<int64_t>(2 * VL, n - i);
        const vec low = load(x + i, lanes_between(0, std::min(here, VL)));
        const vec high = load(x + i + VL, lanes_between(0, std::max(here - VL, 0)));
        const __m512i words = (__m512i) _mm512_cvtne2ps_pbh(high, low);
        _mm512_mask_storeu_epi32(out + i / 2, lanes_between(0, (here + 1) / 2), words);
    }
}

inline vec fma_pairs(vec a, vec b, vec c) { return _mm512_dpbf16_ps(c, (__m512bh) a, (__m512bh) b); }

#else

// never called: without the instructions, factors() is never bf16
inline vec pairs_of(vec low, vec) { return low; }
inline void to_pairs(const float *, int64_t, float *) {}
inline vec fma_pairs(vec, vec, vec c) { return c; }

#endif

}  // namespace packed
#endif
