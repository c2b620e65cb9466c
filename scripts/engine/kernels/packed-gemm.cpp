// Packed matrix products and convolutions for x86-64; see packed-gemm.h.
//
// C[j][i] = sum over k of V[i][k] * S[j][k]. V lies in vectors (i runs along a row of C), S is broadcast. Both are
// packed, a block of KC values of k at a time, into panels that the micro-kernel reads from front to back:
//   product      V = weights (any type that ggml can widen), S = activations
//   convolution  V = the pixels under the kernel, gathered panel by panel (no im2col tensor), S = weights
// In 32-bit floats, or, where the CPU has AVX512-BF16 and GGML_PACKED is not "f32", in pairs of BF16 with sums in floats.
#include "packed-gemm.h"
#include "ggml-impl.h"
#include "simd-mappings.h"
#include "vec.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define PG512 1
using vec = __m512;
constexpr int VL = 16, NR = 12;
inline vec vload(const float * p) { return _mm512_loadu_ps(p); }
inline void vstore(float * p, vec v) { _mm512_storeu_ps(p, v); }
inline vec vzero() { return _mm512_setzero_ps(); }
inline vec vset1(float x) { return _mm512_set1_ps(x); }
inline vec vfma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
inline vec vadd(vec a, vec b) { return _mm512_add_ps(a, b); }
inline vec vor(vec a, vec b) { return _mm512_or_ps(a, b); }
using lanes = __mmask16;
inline lanes lanes_of(int from, int to) { return (lanes) (((1u << to) - 1) & ~((1u << from) - 1)); }
inline vec vload(const float * p, lanes l) { return _mm512_maskz_loadu_ps(l, p); }
#else
using vec = __m256;
constexpr int VL = 8, NR = 6;
inline vec vload(const float * p) { return _mm256_loadu_ps(p); }
inline void vstore(float * p, vec v) { _mm256_storeu_ps(p, v); }
inline vec vzero() { return _mm256_setzero_ps(); }
inline vec vset1(float x) { return _mm256_set1_ps(x); }
inline vec vfma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
inline vec vadd(vec a, vec b) { return _mm256_add_ps(a, b); }
inline vec vor(vec a, vec b) { return _mm256_or_ps(a, b); }
using lanes = __m256i;
inline lanes lanes_of(int from, int to) {
    const __m256i i = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(from), i), _mm256_cmpgt_epi32(_mm256_set1_epi32(to), i));
}
inline vec vload(const float * p, lanes l) { return _mm256_maskload_ps(p, l); }
#endif
#if defined(PG512) && defined(__AVX512BF16__)
#define PGBF16 1
#endif

constexpr int PV = 2 * VL;         // i in a panel of V
constexpr int KW = 256;            // 32-bit words of k in a block: KW floats or 2 * KW values of BF16
constexpr int NB = PV * 12;        // j in a block of S (a multiple of NR)

constexpr int GROUP = 8;           // panels of V that are packed together

enum mode { OFF, F32, BF16 };

mode chosen() {
    static const mode m = [] {
        const char * e = getenv("GGML_PACKED");
        if (e && !strcmp(e, "off")) return OFF;
#ifdef PGBF16
        if (!e || strcmp(e, "f32")) return BF16;
#endif
        return F32;
    }();
    return m;
}

struct scratch {
    float * v, * s, * rows;
    scratch() {
        const size_t words = (size_t) GROUP * PV * KW + (size_t) NB * KW + (size_t) PV * 2 * KW + 64;
        store.reset((float *) aligned_alloc(64, (words * 4 + 63) / 64 * 64));
        v = store.get();
        rows = v + (size_t) GROUP * PV * KW;
        s = rows + PV * 2 * KW;
    }
    struct release { void operator()(float * p) const { free(p); } };
    std::unique_ptr<float, release> store;
};

// ---- micro-kernel -----------------------------------------------------------------------------------------------

template <int MV, int N, bool BF>
void kernel(int64_t kw, const float * v, const float * s, float * c, int64_t ldc, bool add) {
    vec acc[N][MV];
    for (int j = 0; j < N; ++j)
        for (int i = 0; i < MV; ++i) _mm_prefetch((const char *) (c + j * ldc + i * VL), _MM_HINT_T0);
    for (int j = 0; j < N; ++j)
        for (int i = 0; i < MV; ++i) acc[j][i] = vzero();
    for (int64_t k = 0; k < kw; ++k, v += MV * VL, s += N) {
        vec x[MV];
        for (int i = 0; i < MV; ++i) x[i] = vload(v + i * VL);
#pragma GCC unroll 12
        for (int j = 0; j < N; ++j) {
            const vec y = vset1(s[j]);
            for (int i = 0; i < MV; ++i) {
#ifdef PGBF16
                if constexpr (BF) acc[j][i] = _mm512_dpbf16_ps(acc[j][i], (__m512bh) x[i], (__m512bh) y); else
#endif
                acc[j][i] = vfma(x[i], y, acc[j][i]);
            }
        }
    }
    for (int j = 0; j < N; ++j)
        for (int i = 0; i < MV; ++i) {
            float * p = c + j * ldc + i * VL;
            vstore(p, add ? vadd(vload(p), acc[j][i]) : acc[j][i]);
        }
}

using kernel_t = void (*)(int64_t, const float *, const float *, float *, int64_t, bool);
template <int MV, bool BF>
kernel_t kernel_of(int n) {
    static constexpr kernel_t all[] = {
        kernel<MV, 1, BF>, kernel<MV, 2, BF>, kernel<MV, 3, BF>, kernel<MV, 4, BF>, kernel<MV, 5, BF>, kernel<MV, 6, BF>,
#ifdef PG512
        kernel<MV, 7, BF>, kernel<MV, 8, BF>, kernel<MV, 9, BF>, kernel<MV, 10, BF>, kernel<MV, 11, BF>, kernel<MV, 12, BF>,
#endif
    };
    return all[n - 1];
}

// ---- packing ----------------------------------------------------------------------------------------------------

// rows of k, widened to floats or narrowed to pairs of BF16; returns where they lie (as they are, if that will do)
inline void to_pairs(const float * x, int64_t n, uint32_t * out) {
#ifdef PGBF16
    int64_t i = 0;
    for (; i + 32 <= n; i += 32)
        _mm512_storeu_si512(out + i / 2, (__m512i) _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + 16), _mm512_loadu_ps(x + i)));
    if (i < n) {
        const int64_t left = n - i;
        const __mmask16 lo = left >= 16 ? 0xffff : (1u << left) - 1;
        const __mmask16 hi = left > 16 ? (1u << (left - 16)) - 1 : 0;
        const __m512i y = (__m512i) _mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(hi, x + i + 16), _mm512_maskz_loadu_ps(lo, x + i));
        _mm512_mask_storeu_epi32(out + i / 2, (1u << ((left + 1) / 2)) - 1, y);
    }
#else
    GGML_UNUSED(x); GGML_UNUSED(n); GGML_UNUSED(out);
#endif
}

#ifdef PGBF16
inline int64_t to_pairs(const ggml_fp16_t * x, int64_t n, uint32_t * out) {
    int64_t i = 0;
    for (; i + 32 <= n; i += 32)
        _mm512_storeu_si512(out + i / 2, (__m512i) _mm512_cvtne2ps_pbh(
            _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) (x + i + 16))), _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) (x + i)))));
    return i;
}
#endif

inline void widen(const ggml_fp16_t * x, int64_t n, float * out) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (x + i))));
    for (; i < n; ++i) out[i] = GGML_CPU_FP16_TO_FP32(x[i]);
}

// a matrix whose rows run along k
struct matrix {
    ggml_type type;
    const char * data;
    size_t stride;  // bytes from row to row

    // rows are far apart, so that the CPU does not foresee the next one
    void prefetch(int64_t r, int64_t k0, int64_t kc) const {
        const char * p = data + r * stride + k0 / ggml_blck_size(type) * ggml_type_size(type);
        for (size_t i = 0; i < kc / ggml_blck_size(type) * ggml_type_size(type); i += 64) _mm_prefetch(p + i, _MM_HINT_T0);
    }

    template <bool BF>
    const uint32_t * row(int64_t r, int64_t k0, int64_t kc, float * tmp, uint32_t * out) const {
        const char * p = data + r * stride;
        const float * x = tmp;
        switch (type) {
            case GGML_TYPE_F32: x = (const float *) p + k0; break;
            case GGML_TYPE_F16: {
                const ggml_fp16_t * h = (const ggml_fp16_t *) p + k0;
                if constexpr (!BF) { widen(h, kc, (float *) out); return out; }
#ifdef PGBF16
                const int64_t done = to_pairs(h, kc, out);
                widen(h + done, kc - done, tmp);
                to_pairs(tmp, kc - done, out + done / 2);
#endif
                return out;
            }
            default:
                if (BF && type == GGML_TYPE_BF16 && kc % 2 == 0) return (const uint32_t *) ((const uint16_t *) p + k0);
                if (!BF) tmp = (float *) out;
                ggml_get_type_traits(type)->to_float(p + k0 / ggml_blck_size(type) * ggml_type_size(type), tmp, kc);
                x = tmp;
        }
        if constexpr (!BF) return (const uint32_t *) x;
        to_pairs(x, kc, out);
        return out;
    }
};

inline void transpose_8x8(const uint32_t * const * r, int64_t k, float * out, int64_t ld) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps((const float *) r[i] + k);
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        a[i]     = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        _mm256_storeu_ps(out + i * ld, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        _mm256_storeu_ps(out + (i + 4) * ld, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
}

inline void transpose_4x4(const uint32_t * const * r, int64_t k, float * out, int64_t ld) {
    __m128 a = _mm_loadu_ps((const float *) r[0] + k), b = _mm_loadu_ps((const float *) r[1] + k);
    __m128 c = _mm_loadu_ps((const float *) r[2] + k), d = _mm_loadu_ps((const float *) r[3] + k);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(out, a); _mm_storeu_ps(out + ld, b); _mm_storeu_ps(out + 2 * ld, c); _mm_storeu_ps(out + 3 * ld, d);
}

// rows r[0..n) of kw words into out[k][ld]
void interleave(const uint32_t * const * r, int n, int64_t kw, float * out, int64_t ld) {
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        int64_t k = 0;
        for (; k + 8 <= kw; k += 8) transpose_8x8(r + i, k, out + k * ld + i, ld);
        for (; k < kw; ++k)
            for (int q = 0; q < 8; ++q) memcpy(out + k * ld + i + q, r[i + q] + k, 4);
    }
    for (; i + 4 <= n; i += 4) {
        int64_t k = 0;
        for (; k + 4 <= kw; k += 4) transpose_4x4(r + i, k, out + k * ld + i, ld);
        for (; k < kw; ++k)
            for (int q = 0; q < 4; ++q) memcpy(out + k * ld + i + q, r[i + q] + k, 4);
    }
    for (; i < n; ++i)
        for (int64_t k = 0; k < kw; ++k) memcpy(out + k * ld + i, r[i] + k, 4);
}

template <bool BF>
void pack_rows(const matrix & a, int64_t r0, int n, int ld, int64_t k0, int64_t kc, scratch & t, float * out) {
    const uint32_t * r[PV];
    float * tmp = t.rows + (size_t) PV * KW;  // one row of floats
    uint32_t * words = (uint32_t *) t.rows;
    const int64_t kw = BF ? (kc + 1) / 2 : kc;
    for (int i = 0; i < n; ++i) {
        a.prefetch(r0 + i + 3, k0, kc);
        r[i] = a.row<BF>(r0 + i, k0, kc, tmp, words + (size_t) i * KW);
    }
    interleave(r, n, kw, out, ld);
    if (n < ld)
        for (int64_t k = 0; k < kw; ++k) memset(out + k * ld + n, 0, (ld - n) * 4);
}

#ifdef PGBF16
// the two halves that cvtne2ps_pbh makes, value by value
inline __m512i zip_order() {
    alignas(64) static const uint16_t order[32] = { 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31 };
    return _mm512_load_si512(order);
}
#endif

constexpr int MAX_TAPS = 25;

// the pixels under a convolution's kernel, as rows of k = (channel, ky, kx), along pixels of the result
struct pixels {
    const float * data;          // of one picture
    int64_t w, h, plane;         // of the source; plane in floats
    int64_t ow;                  // of the result
    int kw, kh, sx, sy, px, py, dx, dy;

    // a run of lanes that lie side by side in the source; lane 0 of the vector would be at `offset`
    struct run { int64_t offset; lanes which; bool all; };

    // n pixels from p0 on into panels, each PV * KW words after the one before; the last may be one vector wide
    template <bool BF>
    void pack(int64_t p0, int n, int64_t k0, int64_t kc, float * out) const {
        const int taps = kw * kh, nv = (n + VL - 1) / VL;
        if (taps > MAX_TAPS || sx != 1) {
            for (int i = 0; i < n; i += PV)
                pack_slowly<BF>(p0 + i, std::min(n - i, PV), n - i > VL ? 2 : 1, k0, kc, out + i * KW);
            return;
        }
        // for each tap and vector, its runs: one where the pixels are of one row of the result, more where rows are short
        static thread_local std::vector<run> runs;
        static thread_local std::vector<int> begin;
        runs.clear();
        begin.clear();
        for (int ky = 0; ky < kh; ++ky)
            for (int kx = 0; kx < kw; ++kx)
                for (int v = 0; v < nv; ++v) {
                    begin.push_back((int) runs.size());
                    const int last = std::min(n, (v + 1) * VL);
                    for (int i = v * VL; i < last;) {
                        const int64_t oy = (p0 + i) / ow, ox = (p0 + i) % ow;
                        const int len = (int) std::min<int64_t>(last - i, ow - ox);
                        const int64_t y = oy * sy + ky * dy - py, x = ox + kx * dx - px;
                        const int from = (int) std::min<int64_t>(len, std::max<int64_t>(0, -x));
                        const int to = (int) std::max<int64_t>(from, std::min<int64_t>(len, w - x));
                        if (y >= 0 && y < h && from < to)
                            runs.push_back({ y * w + x - (i - v * VL), lanes_of(i - v * VL + from, i - v * VL + to), to - from == VL });
                        i += len;
                    }
                }
        begin.push_back((int) runs.size());
        const run * const all = runs.data();
        const auto gather = [&](const float * src, const int * at) {
            int r = at[0];
            if (r == at[1]) return vzero();
            vec x = all[r].all ? vload(src + all[r].offset) : vload(src + all[r].offset, all[r].which);
            while (++r < at[1]) x = vor(x, vload(src + all[r].offset, all[r].which));
            return x;
        };
        const int64_t c = k0 / taps;
        int tap = (int) (k0 - c * taps);
        const float * src = data + c * plane;
        const int odd = nv % 2 ? nv - 1 : -1;  // the vector that has a panel of its own
        for (int64_t k = 0; k < kc; k += BF ? 2 : 1) {
            const float * src0 = src;
            const int * at0 = begin.data() + tap * nv;
            if (++tap == taps) { tap = 0; src += plane; }
            float * to = out + (BF ? k / 2 : k) * PV;
            if constexpr (!BF) {
                for (int v = 0; v < nv; ++v)
                    vstore(v == odd ? out + v / 2 * PV * KW + k * VL : to + v / 2 * PV * KW + v % 2 * VL, gather(src0, at0 + v));
            } else {
#ifdef PGBF16
                const __m512i zip = zip_order();
                const float * src1 = src;
                const int * at1 = begin.data() + tap * nv;
                const bool both = k + 1 < kc;
                if (both && ++tap == taps) { tap = 0; src += plane; }
                for (int v = 0; v < nv; ++v) {
                    const vec y = both ? gather(src1, at1 + v) : vzero();
                    const __m512i x = _mm512_permutexvar_epi16(zip, (__m512i) _mm512_cvtne2ps_pbh(y, gather(src0, at0 + v)));
                    _mm512_storeu_si512(v == odd ? out + v / 2 * PV * KW + k / 2 * VL : to + v / 2 * PV * KW + v % 2 * VL, x);
                }
#endif
            }
        }
    }

    template <bool BF>
    void pack_slowly(int64_t p0, int n, int mv, int64_t k0, int64_t kc, float * out) const {
        const int taps = kw * kh, width = mv * VL;
        const auto fill = [&](int64_t k, float * row) {
            const int64_t c = k / taps;
            const int tap = (int) (k - c * taps), ky = tap / kw, kx = tap - ky * kw;
            const float * src = data + c * plane;
            for (int i = 0; i < n; ++i) {
                const int64_t y = (p0 + i) / ow * sy + ky * dy - py, x = (p0 + i) % ow * sx + kx * dx - px;
                row[i] = y >= 0 && y < h && x >= 0 && x < w ? src[y * w + x] : 0;
            }
            for (int i = n; i < width; ++i) row[i] = 0;
        };
        if constexpr (!BF) {
            for (int64_t k = 0; k < kc; ++k, out += width) fill(k0 + k, out);
        } else {
#ifdef PGBF16
            alignas(64) float a[PV], b[PV] = {};
            const __m512i zip = zip_order();
            for (int64_t k = 0; k < kc; k += 2, out += width) {
                fill(k0 + k, a);
                if (k + 1 < kc) fill(k0 + k + 1, b); else memset(b, 0, sizeof(b));
                for (int i = 0; i < mv; ++i)
                    _mm512_storeu_si512(out + i * VL, _mm512_permutexvar_epi16(zip,
                        (__m512i) _mm512_cvtne2ps_pbh(_mm512_load_ps(b + i * VL), _mm512_load_ps(a + i * VL))));
            }
#endif
        }
    }
};

// ---- blocks -----------------------------------------------------------------------------------------------------

template <bool BF, class PackV>
void block(const PackV & pack_v, const matrix & s, float * c, int64_t ldc, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
           int64_t k, scratch & t) {
    constexpr int64_t KC = BF ? 2 * KW : KW;
    for (int64_t k0 = 0; k0 < k; k0 += KC) {
        const int64_t kc = std::min<int64_t>(KC, k - k0), kw = BF ? (kc + 1) / 2 : kc;
        for (int64_t j = n0; j < n1; j += NR) {
            const int n = (int) std::min<int64_t>(NR, n1 - j);
            pack_rows<BF>(s, j, n, n, k0, kc, t, t.s + (j - n0) * kw);
        }
        for (int64_t g = m0; g < m1; g += GROUP * PV) {
            const int64_t end = std::min<int64_t>(m1, g + GROUP * PV);
            pack_v(g, (int) (end - g), k0, kc, t.v);
            for (int64_t i = g; i < end; i += PV) {
                const int m = (int) std::min<int64_t>(PV, end - i), mv = m > VL ? 2 : 1;
                const float * v = t.v + (i - g) * KW;
                for (int64_t j = n0; j < n1; j += NR) {
                    const int n = (int) std::min<int64_t>(NR, n1 - j);
                    const kernel_t run = mv == 2 ? kernel_of<2, BF>(n) : kernel_of<1, BF>(n);
                    float * out = c + j * ldc + i;
                    if (m == mv * VL) {
                        run(kw, v, t.s + (j - n0) * kw, out, ldc, k0 > 0);
                    } else {
                        float edge[NR * PV];
                        run(kw, v, t.s + (j - n0) * kw, edge, PV, false);
                        for (int q = 0; q < n; ++q)
                            for (int l = 0; l < m; ++l) out[q * ldc + l] = edge[q * PV + l] + (k0 > 0 ? out[q * ldc + l] : 0);
                    }
                }
            }
        }
    }
}

// the jobs of `batches` products of m x n, shared by the threads as they get done
template <class Job>
void share(const ggml_compute_params * params, int64_t batches, int64_t m, int64_t n, const Job & job) {
    const int64_t nj = (n + NB - 1) / NB;
    int64_t nb = (n + nj - 1) / nj;
    nb = (nb + NR - 1) / NR * NR;
    int64_t mb = (m + PV - 1) / PV * PV;
    if (params->nth > 1) {
        const int64_t want = 4 * params->nth;
        while (batches * nj * ((m + mb - 1) / mb) < want && mb > 4 * PV) mb = (mb / 2 + PV - 1) / PV * PV;
    }
    const int64_t mj = (m + mb - 1) / mb, jobs = batches * nj * mj;
    if (params->ith == 0) ggml_threadpool_chunk_set(params->threadpool, params->nth);
    ggml_barrier(params->threadpool);
    static thread_local scratch t;
    for (int64_t i = params->ith; i < jobs; i = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        const int64_t b = i / (nj * mj), in = i / mj % nj, im = i % mj;
        job(b, im * mb, std::min(m, (im + 1) * mb), in * nb, std::min(n, (in + 1) * nb), t);
    }
}

}  // namespace

bool ggml_packed_mul_mat(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * w = dst->src[0], * x = dst->src[1];
    const int64_t k = w->ne[0], m = w->ne[1], n = x->ne[1];
    const mode how = chosen();
    if (how == OFF || n < 8 || m < 8 || k < 16) return false;
    if (w->type != GGML_TYPE_F32 && ggml_get_type_traits(w->type)->to_float == nullptr) return false;
    if (x->type != GGML_TYPE_F32 && x->type != GGML_TYPE_F16) return false;
    if (dst->type != GGML_TYPE_F32 || w->nb[0] != ggml_type_size(w->type) || x->nb[0] != ggml_type_size(x->type)) return false;
    if (KW % ggml_blck_size(w->type)) return false;
    const auto run = [&](auto bf) {
        constexpr bool BF = decltype(bf)::value;
        share(params, dst->ne[2] * dst->ne[3], m, n, [&](int64_t b, int64_t m0, int64_t m1, int64_t n0, int64_t n1, scratch & t) {
            const int64_t b2 = b % dst->ne[2], b3 = b / dst->ne[2];
            const matrix v = { w->type, (const char *) w->data + b2 / (x->ne[2] / w->ne[2]) * w->nb[2] + b3 / (x->ne[3] / w->ne[3]) * w->nb[3], w->nb[1] };
            const matrix s = { x->type, (const char *) x->data + b2 * x->nb[2] + b3 * x->nb[3], x->nb[1] };
            float * c = (float *) ((char *) dst->data + b2 * dst->nb[2] + b3 * dst->nb[3]);
            block<BF>([&](int64_t i, int rows, int64_t k0, int64_t kc, float * out) {
                for (int r = 0; r < rows; r += PV)
                    pack_rows<BF>(v, i + r, std::min(rows - r, PV), rows - r > VL ? PV : VL, k0, kc, t, out + r * KW);
            }, s, c, dst->nb[1] / sizeof(float), m0, m1, n0, n1, k, t);
        });
    };
    if (how == BF16) run(std::true_type()); else run(std::false_type());
    return true;
}

bool ggml_packed_conv_2d(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * w = dst->src[0], * x = dst->src[1];
    const mode how = chosen();
    if (how == OFF || x->type != GGML_TYPE_F32 || dst->type != GGML_TYPE_F32 || !ggml_is_contiguous(w) || !ggml_is_contiguous(dst)) return false;
    if (w->type != GGML_TYPE_F32 && w->type != GGML_TYPE_F16) return false;
    if (x->nb[0] != 4 || x->nb[1] != x->ne[0] * 4) return false;
    const int32_t * o = dst->op_params;
    const int64_t k = w->ne[0] * w->ne[1] * w->ne[2], m = dst->ne[0] * dst->ne[1], n = w->ne[3];
    const matrix s = { w->type, (const char *) w->data, (size_t) k * ggml_type_size(w->type) };
    const auto run = [&](auto bf) {
        constexpr bool BF = decltype(bf)::value;
        share(params, dst->ne[3], m, n, [&](int64_t b, int64_t m0, int64_t m1, int64_t n0, int64_t n1, scratch & t) {
            const pixels v = { (const float *) ((const char *) x->data + b * x->nb[3]), x->ne[0], x->ne[1], (int64_t) x->nb[2] / 4,
                dst->ne[0], (int) w->ne[0], (int) w->ne[1], o[0], o[1], o[2], o[3], o[4], o[5] };
            block<BF>([&](int64_t i, int rows, int64_t k0, int64_t kc, float * out) {
                v.pack<BF>(i, rows, k0, kc, out);
            }, s, (float *) ((char *) dst->data + b * dst->nb[3]), m, m0, m1, n0, n1, k, t);
        });
    };
    if (how == BF16) run(std::true_type()); else run(std::false_type());
    return true;
}

// attention in blocks: scores of QB queries with MC keys at a time, their softmax kept up to date as keys come
namespace {

constexpr int QB = 16 * NR, MC = 256;
static_assert(MC <= KW && MC % PV == 0, "a block of keys is one block of k");

#ifdef PG512
inline float vmax_of(vec a) { return _mm512_reduce_max_ps(a); }
inline float vsum_of(vec a) { return _mm512_reduce_add_ps(a); }
inline vec vmax(vec a, vec b) { return _mm512_max_ps(a, b); }
inline vec vmul(vec a, vec b) { return _mm512_mul_ps(a, b); }
inline vec vwiden(const ggml_fp16_t * p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p)); }
#else
inline float vmax_of(vec a) { float x[8]; vstore(x, a); return *std::max_element(x, x + 8); }
inline float vsum_of(vec a) { float x[8]; vstore(x, a); return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7])); }
inline vec vmax(vec a, vec b) { return _mm256_max_ps(a, b); }
inline vec vmul(vec a, vec b) { return _mm256_mul_ps(a, b); }
inline vec vwiden(const ggml_fp16_t * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
#endif

// the values of keys k0.., as panels of their dimensions: [key][PV], the last one vector wide where that is enough
template <bool BF>
void pack_values(const matrix & v, int64_t k0, int64_t kc, int64_t d, float * tmp, float * out) {
    const int64_t nv = (d + VL - 1) / VL;
    float * a = tmp, * b = tmp + (nv * VL + PV);
    memset(a, 0, 2 * (nv * VL + PV) * sizeof(float));
    const auto widened = [&](int64_t k, float * to) {
        const char * p = v.data + k * v.stride;
        if (v.type == GGML_TYPE_F16) widen((const ggml_fp16_t *) p, d, to); else memcpy(to, p, d * 4);
    };
    for (int64_t k = 0; k < kc; k += BF ? 2 : 1) {
        widened(k0 + k, a);
        if (BF) { if (k + 1 < kc) widened(k0 + k + 1, b); else memset(b, 0, d * 4); }
        for (int64_t i = 0; i < nv; ++i) {
            const int width = nv % 2 && i == nv - 1 ? VL : PV;
            float * to = out + i / 2 * PV * KW + (BF ? k / 2 : k) * width + i % 2 * VL;
#ifdef PGBF16
            if constexpr (BF) {
                _mm512_storeu_si512(to, _mm512_permutexvar_epi16(zip_order(), (__m512i) _mm512_cvtne2ps_pbh(vload(b + i * VL), vload(a + i * VL))));
                continue;
            }
#endif
            vstore(to, vload(a + i * VL));
        }
    }
}

template <bool BF>
void attend(const matrix & q, const matrix & k, const matrix & v, const char * mask, size_t mask_stride, float scale,
            int64_t keys, int64_t d, int64_t dv, int n, float * out, size_t out_stride, scratch & t) {
    const int64_t nv = (dv + VL - 1) / VL, dp = nv * VL, dw = BF ? (d + 1) / 2 : d;
    static thread_local std::vector<float> store;
    const size_t rows = (size_t) QB, vp = (size_t) (nv + 1) / 2 * PV * KW;
    store.resize(rows * KW * 2 + rows * MC + rows * dp + vp + 2 * (dp + PV) + rows * 2 + MC * PV + 64);
    float * qp = store.data(), * pp = qp + rows * KW, * scores = pp + rows * KW, * o = scores + rows * MC, * vpack = o + rows * dp;
    float * tmp = vpack + vp, * top = tmp + 2 * (dp + PV), * sum = top + rows;
    for (int j = 0; j < n; j += NR) pack_rows<BF>(q, j, std::min(NR, n - j), std::min(NR, n - j), 0, d, t, qp + j * dw);
    std::fill(o, o + n * dp, 0.0f);
    std::fill(top, top + n, -INFINITY);
    std::fill(sum, sum + n, 0.0f);
    for (int64_t c = 0; c < keys; c += MC) {
        int64_t kc = std::min<int64_t>(MC, keys - c);
        if (mask) {  // keys at the end that no query sees, as those that fill up a multiple of 256
            int64_t seen = 0;
            for (int j = 0; j < n; ++j) {
                const ggml_fp16_t * m = (const ggml_fp16_t *) (mask + j * mask_stride) + c;
                for (int64_t i = kc; i > seen; --i) if (m[i - 1] != 0xfc00) { seen = i; break; }
            }
            if ((kc = seen) == 0) continue;
        }
        const int64_t width = (kc + VL - 1) / VL * VL;
        for (int64_t i = 0; i < kc; i += PV) {
            const int mv = kc - i > VL ? 2 : 1;
            pack_rows<BF>(k, c + i, (int) std::min<int64_t>(PV, kc - i), mv * VL, 0, d, t, t.v);
            for (int j = 0; j < n; j += NR) {
                const int r = std::min(NR, n - j);
                (mv == 2 ? kernel_of<2, BF>(r) : kernel_of<1, BF>(r))(dw, t.v, qp + j * dw, scores + j * MC + i, MC, false);
            }
        }
        for (int j = 0; j < n; ++j) {
            float * s = scores + j * MC;
            for (int64_t i = kc; i < width; ++i) s[i] = -INFINITY;
            vec most = vset1(-INFINITY);
            const ggml_fp16_t * m = mask ? (const ggml_fp16_t *) (mask + j * mask_stride) + c : nullptr;
            for (int64_t i = 0; i < width; i += VL) {
                vec x = vmul(vload(s + i), vset1(scale));
                if (m) {
                    if (i + VL <= kc) x = vadd(x, vwiden(m + i));
                    else for (int64_t l = i; l < kc; ++l) s[l] = s[l] * scale + GGML_CPU_FP16_TO_FP32(m[l]);
                }
                if (!m || i + VL <= kc) vstore(s + i, x); else x = vload(s + i);
                most = vmax(most, x);
            }
            const float now = std::max(top[j], vmax_of(most));
            if (now == -INFINITY) { memset(s, 0, width * sizeof(float)); continue; }
            vec total = vzero();
            for (int64_t i = 0; i < width; i += VL) {
                const vec e = ggml_v_expf(vadd(vload(s + i), vset1(-now)));
                vstore(s + i, e);
                total = vadd(total, e);
            }
            if (now > top[j]) {
                const float less = top[j] == -INFINITY ? 0 : expf(top[j] - now);
                sum[j] *= less;
                for (int64_t i = 0; i < dp; i += VL) vstore(o + j * dp + i, vmul(vload(o + j * dp + i), vset1(less)));
                top[j] = now;
            }
            sum[j] += vsum_of(total);
        }
        const matrix p = { GGML_TYPE_F32, (const char *) scores, MC * sizeof(float) };
        const int64_t kw = BF ? (kc + 1) / 2 : kc;
        for (int j = 0; j < n; j += NR) pack_rows<BF>(p, j, std::min(NR, n - j), std::min(NR, n - j), 0, kc, t, pp + j * kw);
        pack_values<BF>(v, c, kc, dv, tmp, vpack);
        for (int64_t i = 0; i < nv; i += 2)
            for (int j = 0; j < n; j += NR) {
                const int r = std::min(NR, n - j);
                (i + 1 < nv ? kernel_of<2, BF>(r) : kernel_of<1, BF>(r))(kw, vpack + i / 2 * PV * KW, pp + j * kw, o + j * dp + i * VL, dp, true);
            }
    }
    for (int j = 0; j < n; ++j) {
        float * to = (float *) ((char *) out + j * out_stride);
        const float by = sum[j] > 0 ? 1 / sum[j] : 0;
        for (int64_t i = 0; i < dv; ++i) to[i] = o[j * dp + i] * by;
    }
}

}  // namespace

bool ggml_packed_flash_attn(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0], * k = dst->src[1], * v = dst->src[2], * mask = dst->src[3];
    float scale, bias, cap;
    memcpy(&scale, (const float *) dst->op_params + 0, 4);
    memcpy(&bias, (const float *) dst->op_params + 1, 4);
    memcpy(&cap, (const float *) dst->op_params + 2, 4);
    const mode how = chosen();
    const int64_t d = q->ne[0], dv = v->ne[0], n = q->ne[1], keys = k->ne[1];
    if (how == OFF || bias != 0 || cap != 0 || dst->src[4] || n < NR || d > (how == BF16 ? 2 * KW : KW)) return false;
    if (q->type != GGML_TYPE_F32 || (k->type != GGML_TYPE_F16 && k->type != GGML_TYPE_F32) || (v->type != GGML_TYPE_F16 && v->type != GGML_TYPE_F32)) return false;
    if (q->nb[0] != 4 || k->nb[0] != ggml_type_size(k->type) || v->nb[0] != ggml_type_size(v->type) || dst->nb[0] != 4) return false;
    if (mask && mask->type != GGML_TYPE_F16) return false;
    const int64_t blocks = (n + QB - 1) / QB, jobs = blocks * q->ne[2] * q->ne[3];
    if (params->ith == 0) ggml_threadpool_chunk_set(params->threadpool, params->nth);
    ggml_barrier(params->threadpool);
    static thread_local scratch t;
    for (int64_t job = params->ith; job < jobs; job = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        const int64_t first = job % blocks * QB, h = job / blocks % q->ne[2], b = job / blocks / q->ne[2];
        const matrix mq = { q->type, (const char *) q->data + first * q->nb[1] + h * q->nb[2] + b * q->nb[3], q->nb[1] };
        const matrix mk = { k->type, (const char *) k->data + h / (q->ne[2] / k->ne[2]) * k->nb[2] + b / (q->ne[3] / k->ne[3]) * k->nb[3], k->nb[1] };
        const matrix mv = { v->type, (const char *) v->data + h / (q->ne[2] / v->ne[2]) * v->nb[2] + b / (q->ne[3] / v->ne[3]) * v->nb[3], v->nb[1] };
        const char * m = mask ? (const char *) mask->data + first * mask->nb[1] + h % mask->ne[2] * mask->nb[2] + b % mask->ne[3] * mask->nb[3] : nullptr;
        float * out = (float *) ((char *) dst->data + h * dst->nb[1] + first * dst->nb[2] + b * dst->nb[3]);
        const int count = (int) std::min<int64_t>(QB, n - first);
        (how == BF16 ? attend<true> : attend<false>)(mq, mk, mv, m, mask ? mask->nb[1] : 0, scale, keys, d, dv, count, out, dst->nb[2], t);
    }
    return true;
}

#else
bool ggml_packed_flash_attn(const ggml_compute_params *, ggml_tensor *) { return false; }
bool ggml_packed_mul_mat(const ggml_compute_params *, ggml_tensor *) { return false; }
bool ggml_packed_conv_2d(const ggml_compute_params *, ggml_tensor *) { return false; }
#endif

extern "C" const char * ggml_packed_kernels(void) {
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
    switch (chosen()) {
        case OFF: return "";
        case BF16: return "AVX-512 bf16";
#ifdef PG512
        case F32: return "AVX-512 f32";
#else
        case F32: return "AVX2 f32";
#endif
    }
#endif
    return "";
}
