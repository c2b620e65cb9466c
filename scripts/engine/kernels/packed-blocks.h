#pragma once
// Products of packed blocks: what convolutions, products and attention have in common.
//
//   C[j][i] = sum over k of V[i][k] * S[j][k]
//
// i runs along a row of C, so that V comes in vectors and S is broadcast. k is taken in blocks. Of each, up to NB rows
// of S are copied (and widened) as they are, to stay in the L2 cache, and V is packed into panels of PV values of i,
// [k][PV], of which one stays in L1 while the micro-kernel takes it past all rows of S, a tile of NR rows at a time.
#include "packed-simd.h"

#ifdef PACKED

#include "ggml-impl.h"
#include "quants.h"
#include "simd-mappings.h"

#include <cstring>
#include <new>

namespace packed {

constexpr int PV = 2 * VL;    // values of i in a panel of V
constexpr int KW = 256;       // words of k in a block, at most
constexpr int NB = 16 * PV;   // rows of S in a block, at most
constexpr int MB = 64 * PV;   // values of i whose sums are kept together between blocks of k, at most
constexpr int GROUP = 4;      // panels of V that are packed together
constexpr int PAGE = 1024;    // floats in a page of memory

// A thread's buffers. They live as long as the thread: to allocate them for each of thousands of operations costs time.
class Scratch {
  public:
    static constexpr size_t panels = (size_t) GROUP * PV * KW, rows = (size_t) NB * KW, lines = (size_t) PV * KW;
    static constexpr size_t line = 2 * KW, partial = (size_t) NB * (MB + PV);

    float * v() const { return words_; }                             // packed panels
    float * s() const { return v() + panels; }                       // rows of S
    float * lines_of_v() const { return s() + rows; }                // rows of V, before they are interleaved
    float * one_line() const { return lines_of_v() + lines; }        // one row, before it is narrowed to BF16
    float * sums() const { return one_line() + line; }               // of C, until all blocks of k are added
    const float * zeros() const { return sums() + partial; }         // a row that is not there

    static Scratch & of_this_thread() {
        static thread_local Scratch scratch;
        return scratch;
    }

    Scratch(const Scratch &) = delete;
    Scratch & operator=(const Scratch &) = delete;

  private:
    static constexpr std::align_val_t alignment{ 64 };

    Scratch() : words_((float *) ::operator new((panels + rows + lines + line + partial + KW) * sizeof(float), alignment)) {
        std::memset(sums() + partial, 0, KW * sizeof(float));
    }
    ~Scratch() { ::operator delete(words_, alignment); }

    float * words_;
};

// ---- micro-kernel --------------------------------------------------------------------------------------------------

// Where a tile's results go, and what they are added to: null, or rows of the same shape.
struct Sums {
    float * to;
    int64_t to_pitch;
    const float * from;
    int64_t from_pitch;
};

// N rows of C, MV vectors wide: kw words of k from a panel v and from rows of s that are lds words apart
template <int MV, int N, bool BF>
void tile(int64_t kw, const float * v, const float * s, int64_t lds, const Sums & c) {
    vec sums[N][MV];
    PACKED_UNROLL
    for (int j = 0; j < N; ++j) {
        PACKED_UNROLL
        for (int i = 0; i < MV; ++i) {
            _mm_prefetch((const char *) (c.to + j * c.to_pitch + i * VL), _MM_HINT_T0);
            sums[j][i] = zero();
        }
    }
    for (int64_t k = 0; k < kw; ++k, v += MV * VL) {
        vec x[MV];
        PACKED_UNROLL
        for (int i = 0; i < MV; ++i) x[i] = load(v + i * VL);
        PACKED_UNROLL
        for (int j = 0; j < N; ++j) {
            const vec y = all(s[j * lds + k]);
            PACKED_UNROLL
            for (int i = 0; i < MV; ++i) sums[j][i] = BF ? fma_pairs(x[i], y, sums[j][i]) : fma(x[i], y, sums[j][i]);
        }
    }
    PACKED_UNROLL
    for (int j = 0; j < N; ++j) {
        PACKED_UNROLL
        for (int i = 0; i < MV; ++i) {
            if (c.from) sums[j][i] = add(load(c.from + j * c.from_pitch + i * VL), sums[j][i]);
            store(c.to + j * c.to_pitch + i * VL, sums[j][i]);
        }
    }
}

using Tile = void (*)(int64_t, const float *, const float *, int64_t, const Sums &);

// the tile of `vectors` (1 or 2) by `rows` (1 to NR)
template <bool BF>
Tile tile_of(int vectors, int rows) {
    static constexpr Tile one[] = {
        tile<1, 1, BF>, tile<1, 2, BF>, tile<1, 3, BF>, tile<1, 4, BF>,  tile<1, 5, BF>,  tile<1, 6, BF>,
#ifdef PACKED_AVX512
        tile<1, 7, BF>, tile<1, 8, BF>, tile<1, 9, BF>, tile<1, 10, BF>, tile<1, 11, BF>, tile<1, 12, BF>,
#endif
    };
    static constexpr Tile two[] = {
        tile<2, 1, BF>, tile<2, 2, BF>, tile<2, 3, BF>, tile<2, 4, BF>,  tile<2, 5, BF>,  tile<2, 6, BF>,
#ifdef PACKED_AVX512
        tile<2, 7, BF>, tile<2, 8, BF>, tile<2, 9, BF>, tile<2, 10, BF>, tile<2, 11, BF>, tile<2, 12, BF>,
#endif
    };
    static_assert(sizeof(one) / sizeof(one[0]) == NR && sizeof(two) / sizeof(two[0]) == NR, "one for each number of rows");
    return vectors == 1 ? one[rows - 1] : two[rows - 1];
}

// ---- rows along k --------------------------------------------------------------------------------------------------

inline int64_t words_of(int64_t values, bool bf) { return bf ? (values + 1) / 2 : values; }

inline void widen(const ggml_fp16_t * x, int64_t n, float * out) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) store(out + i, load(x + i));
    for (; i < n; ++i) out[i] = GGML_CPU_FP16_TO_FP32(x[i]);
}

// ggml's own is built without AVX
inline void widen(const block_q8_0 * x, int64_t n, float * out) {
    for (int64_t b = 0; b < n / QK8_0; ++b) {
        const __m256 d = _mm256_set1_ps(GGML_CPU_FP16_TO_FP32(x[b].d));
        for (int i = 0; i < QK8_0; i += 8) {
            const __m256i q = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) (x[b].qs + i)));
            _mm256_storeu_ps(out + b * QK8_0 + i, _mm256_mul_ps(d, _mm256_cvtepi32_ps(q)));
        }
    }
}

// A matrix in memory whose rows run along k, in any type that ggml can widen to floats.
struct Rows {
    ggml_type type;
    const char * data;
    size_t stride;  // bytes from row to row

    static bool readable(const ggml_tensor * t) {
        return t->nb[0] == ggml_type_size(t->type) &&
               (t->type == GGML_TYPE_F32 || ggml_get_type_traits(t->type)->to_float != nullptr);
    }

    const char * at(int64_t row, int64_t k) const {
        return data + row * stride + k / ggml_blck_size(type) * ggml_type_size(type);
    }

    // rows are far apart, so that the CPU does not foresee the next one
    void prefetch(int64_t row, int64_t k0, int64_t kc) const {
        const char * const end = at(row, k0 + kc);
        for (const char * p = at(row, k0); p < end; p += 64) _mm_prefetch(p, _MM_HINT_T0);
    }

    void floats(int64_t row, int64_t k0, int64_t kc, float * out) const {
        const char * p = at(row, k0);
        switch (type) {
            case GGML_TYPE_F32: std::memcpy(out, p, kc * sizeof(float)); break;
            case GGML_TYPE_F16: widen((const ggml_fp16_t *) p, kc, out); break;
            case GGML_TYPE_Q8_0: widen((const block_q8_0 *) p, kc, out); break;
            default: ggml_get_type_traits(type)->to_float(p, out, kc);
        }
    }

    // one row as words
    template <bool BF>
    void words(int64_t row, int64_t k0, int64_t kc, const Scratch & t, float * out) const {
        if constexpr (!BF) {
            floats(row, k0, kc, out);
        } else if (type == GGML_TYPE_F32) {
            to_pairs((const float *) at(row, k0), kc, out);
        } else if (type == GGML_TYPE_BF16 && kc % 2 == 0) {
            std::memcpy(out, at(row, k0), kc * 2);
        } else {
            floats(row, k0, kc, t.one_line());
            to_pairs(t.one_line(), kc, out);
        }
    }
};

// rows [r0, r0 + n) one below the other, `pitch` words apart
template <bool BF>
void copy_rows(const Rows & a, int64_t r0, int64_t n, int64_t k0, int64_t kc, const Scratch & t, float * out, int64_t pitch) {
    for (int64_t i = 0; i < n; ++i) {
        if (i + 3 < n) a.prefetch(r0 + i + 3, k0, kc);
        a.words<BF>(r0 + i, k0, kc, t, out + i * pitch);
    }
}

inline void transpose_8x8(const float * const * row, int64_t k, float * out, int64_t pitch) {
    __m256 a[8], b[8];
    PACKED_UNROLL
    for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(row[i] + k);
    PACKED_UNROLL
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    PACKED_UNROLL
    for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    PACKED_UNROLL
    for (int i = 0; i < 4; ++i) {
        _mm256_storeu_ps(out + i * pitch, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        _mm256_storeu_ps(out + (i + 4) * pitch, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
}

// kw words of `width` rows as [k][width]
inline void transpose_panel(const float * const * row, int64_t kw, int width, float * out) {
    for (int i = 0; i < width; i += 8) {
        int64_t k = 0;
        for (; k + 8 <= kw; k += 8) transpose_8x8(row + i, k, out + k * width + i, width);
        for (; k < kw; ++k)
            for (int q = i; q < i + 8; ++q) out[k * width + q] = row[q][k];
    }
}

// rows [r0, r0 + n) as one panel [k][width], filled up with zeros
template <bool BF>
void pack_panel(const Rows & a, int64_t r0, int n, int width, int64_t k0, int64_t kc, const Scratch & t, float * out) {
    const float * row[PV];
    for (int i = 0; i < width; ++i) {
        if (i >= n) {
            row[i] = t.zeros();
        } else if (!BF && a.type == GGML_TYPE_F32) {
            row[i] = (const float *) a.at(r0 + i, k0);
        } else {
            if (i + 3 < n) a.prefetch(r0 + i + 3, k0, kc);
            float * line = t.lines_of_v() + (size_t) i * KW;
            a.words<BF>(r0 + i, k0, kc, t, line);
            row[i] = line;
        }
    }
    transpose_panel(row, words_of(kc, BF), width, out);
}

inline int width_of(int64_t values) { return values > VL ? PV : VL; }

// ---- blocks --------------------------------------------------------------------------------------------------------

// Which values of k make a block: as many as fit, and all blocks about as long, in whole blocks of a quantised type.
inline int64_t block_of_k(int64_t fit, int64_t k, int64_t unit) {
    const int64_t most = fit / unit * unit;
    const int64_t blocks = (k + most - 1) / most;
    return ((k + blocks - 1) / blocks + unit - 1) / unit * unit;
}

// What `multiply` has to know of its factors: here floats, or pairs of BF16.
template <bool BF>
struct OfFloats {
    static constexpr int height = NR;  // rows of a tile, at most

    static int64_t step(int64_t k, int64_t unit) { return block_of_k((BF ? 2 : 1) * KW, k, unit); }

    static int64_t words(int64_t kc) { return words_of(kc, BF); }

    static void rows(const Rows & s, int64_t r0, int64_t n, int64_t k0, int64_t kc, const Scratch & t, float * out) {
        copy_rows<BF>(s, r0, n, k0, kc, t, out, words(kc));
    }

    static void panel(const Rows & v, int64_t r0, int n, int width, int64_t k0, int64_t kc, const Scratch & t, float * out) {
        pack_panel<BF>(v, r0, n, width, k0, kc, t, out);
    }

    static Tile tile(int vectors, int rows) { return tile_of<BF>(vectors, rows); }
};

// n rows in tiles of about the same height, as low ones leave the processor waiting: job(first, rows)
template <class Job>
void in_tiles(int64_t n, int height, const Job & job) {
    const int64_t tiles = (n + height - 1) / height;
    const int64_t low = n / tiles, higher = n % tiles;
    for (int64_t i = 0, first = 0; i < tiles; ++i) {
        const int rows = (int) low + (i < higher);
        job(first, rows);
        first += rows;
    }
}

// Rows [n0, n1) of C, values [m0, m1) of each. pack_v(i, n, k0, kc, out) packs n values of i from i on into panels, each
// PV * KW words after the one before; the last may be VL wide. Between blocks of k the sums lie in C, or where rows of C
// are whole pages apart, and thus on the same lines of a cache, in a buffer with another pitch.
template <class Kind, class PackV>
void multiply(const PackV & pack_v, const Rows & s, float * c, int64_t ldc, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
              int64_t k, int64_t unit, const Scratch & t) {
    const int64_t step = Kind::step(k, unit);
    const bool aside = ldc % PAGE == 0 && step < k;
    if (aside && m1 - m0 > MB) {
        for (int64_t i = m0; i < m1; i += MB) multiply<Kind>(pack_v, s, c, ldc, i, std::min(m1, i + MB), n0, n1, k, unit, t);
        return;
    }
    const int64_t pitch = aside ? (m1 - m0 + PV - 1) / PV * PV + PV : ldc;
    float * const between = aside ? t.sums() : c + n0 * ldc + m0;
    for (int64_t k0 = 0; k0 < k; k0 += step) {
        const int64_t kc = std::min(step, k - k0), kw = Kind::words(kc);
        Kind::rows(s, n0, n1 - n0, k0, kc, t, t.s());
        for (int64_t i = m0; i < m1; i += PV) {
            const int64_t in_group = (i - m0) % (GROUP * PV);
            if (in_group == 0) pack_v(i, (int) std::min<int64_t>(GROUP * PV, m1 - i), k0, kc, t.v());
            const int m = (int) std::min<int64_t>(PV, m1 - i), width = width_of(m);
            in_tiles(n1 - n0, Kind::height, [&](int64_t j, int n) {
                float * const sums = between + j * pitch + (i - m0);
                Sums sum = { sums, pitch, k0 > 0 ? sums : nullptr, pitch };
                if (k0 + kc == k) sum.to = c + (n0 + j) * ldc + i, sum.to_pitch = ldc;
                const Tile run = Kind::tile(width / VL, n);
                const float * v = t.v() + in_group * KW, * rows = t.s() + j * kw;
                if (m == width) {
                    run(kw, v, rows, kw, sum);
                    return;
                }
                float edge[Kind::height * PV];  // the tile is wider than what is left of the row
                run(kw, v, rows, kw, { edge, PV, nullptr, 0 });
                for (int q = 0; q < n; ++q)
                    for (int l = 0; l < m; ++l)
                        sum.to[q * sum.to_pitch + l] = edge[q * PV + l] + (sum.from ? sum.from[q * pitch + l] : 0);
            });
        }
    }
}

// Calls job(i) for i in [0, jobs), each once, on whichever thread is free. Every thread of the operation calls it.
template <class Job>
void share(const ggml_compute_params * params, int64_t jobs, const Job & job) {
    if (params->ith == 0) ggml_threadpool_chunk_set(params->threadpool, params->nth);
    ggml_barrier(params->threadpool);
    for (int64_t i = params->ith; i < jobs; i = ggml_threadpool_chunk_add(params->threadpool, 1)) job(i);
}

// `batches` products of m x n, cut into blocks: job(batch, m0, m1, n0, n1). Where the cuts lie changes no result.
template <class Job>
void share_blocks(const ggml_compute_params * params, int64_t batches, int64_t m, int64_t n, const Job & job) {
    const auto up = [](int64_t x, int64_t to) { return (x + to - 1) / to * to; };
    const int64_t n_jobs = (n + NB - 1) / NB;
    const int64_t nb = (n + n_jobs - 1) / n_jobs;
    int64_t mb = up(m, PV);
    const int64_t wanted = params->nth > 1 ? 4 * params->nth : 1;
    while (batches * n_jobs * ((m + mb - 1) / mb) < wanted && mb > 4 * PV) mb = up(mb / 2, PV);
    const int64_t m_jobs = (m + mb - 1) / mb;
    share(params, batches * n_jobs * m_jobs, [&](int64_t i) {
        const int64_t n0 = i / m_jobs % n_jobs * nb, m0 = i % m_jobs * mb;
        if (n0 < n) job(i / (n_jobs * m_jobs), m0, std::min(m, m0 + mb), n0, std::min(n, n0 + nb));
    });
}

}  // namespace packed
#endif
