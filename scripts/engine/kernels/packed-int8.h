#pragma once
// Quantised weights times activations that are quantised to bytes, for CPUs that add four products of bytes at once.
//
// Weights and activations are cut into the groups of k that have a scale of their own. A weight is
// scale * byte + least, a byte of no sign; an activation is scale * byte, with one. Of a group
//
//   sum over k of weight * activation = scale * scale * (sum of byte * byte) + least * scale * (sum of the activation's bytes)
//
// in which the sums are whole numbers, and exact. Types whose bytes lie around an offset instead (128 for Q8_0, 8 for Q4_0)
// have no least value: the sum of byte * byte begins with -offset * (sum of the activation's bytes).
#include "packed-amx.h"
#include "packed-blocks.h"

#ifdef PACKED_INT8

namespace packed {

// A group of one row, W words of bytes: lines of weights before they are interleaved, and rows of activations.
template <int W>
struct Group {
    static constexpr int words = W + 2, values = 4 * W;

    uint8_t bytes[values];
    float scale;
    float more;  // weights: the least value. Activations: scale * sum of bytes, or -offset * sum of bytes as an integer.
};

// ---- weights -------------------------------------------------------------------------------------------------------

inline float from_half(ggml_half x) { return GGML_CPU_FP16_TO_FP32(x); }

inline void nibbles(const uint8_t * packed, int n, uint8_t * low, uint8_t * high) {
    for (int i = 0; i < n; ++i) low[i] = packed[i] & 15;
    for (int i = 0; i < n; ++i) high[i] = packed[i] >> 4;
}

inline void fifth_bits(const uint8_t * packed, uint8_t * bytes) {
    uint32_t bits;
    std::memcpy(&bits, packed, sizeof(bits));
    for (int i = 0; i < 32; ++i) bytes[i] |= (bits >> i & 1) << 4;
}

inline void unpack(const block_q8_0 & b, Group<8> * g) {
    for (int i = 0; i < QK8_0; ++i) g->bytes[i] = (uint8_t) b.qs[i] ^ 128;
    g->scale = from_half(b.d);
}

inline void unpack(const block_q4_0 & b, Group<8> * g) {
    nibbles(b.qs, 16, g->bytes, g->bytes + 16);
    g->scale = from_half(b.d);
}

inline void unpack(const block_q4_1 & b, Group<8> * g) {
    nibbles(b.qs, 16, g->bytes, g->bytes + 16);
    g->scale = from_half(b.d);
    g->more = from_half(b.m);
}

inline void unpack(const block_q5_0 & b, Group<8> * g) {
    nibbles(b.qs, 16, g->bytes, g->bytes + 16);
    fifth_bits(b.qh, g->bytes);
    g->scale = from_half(b.d);
}

inline void unpack(const block_q5_1 & b, Group<8> * g) {
    nibbles(b.qs, 16, g->bytes, g->bytes + 16);
    fifth_bits(b.qh, g->bytes);
    g->scale = from_half(b.d);
    g->more = from_half(b.m);
}

// eight scales and eight least values of 6 bits each
inline void unpack_scales(const uint8_t * packed, float d, float dmin, Group<8> * g) {
    for (int i = 0; i < 8; ++i) {
        const uint8_t * const q = packed + i % 4;
        const int scale = i < 4 ? q[0] & 63 : (q[8] & 15) | q[0] >> 6 << 4;
        const int least = i < 4 ? q[4] & 63 : q[8] >> 4 | q[4] >> 6 << 4;
        g[i].scale = d * scale;
        g[i].more = -dmin * least;
    }
}

inline void unpack(const block_q4_K & b, Group<8> * g) {
    for (int i = 0; i < 8; i += 2) nibbles(b.qs + 16 * i, 32, g[i].bytes, g[i + 1].bytes);
    unpack_scales(b.scales, from_half(b.d), from_half(b.dmin), g);
}

inline void unpack(const block_q5_K & b, Group<8> * g) {
    for (int i = 0; i < 8; i += 2) nibbles(b.qs + 16 * i, 32, g[i].bytes, g[i + 1].bytes);
    for (int i = 0; i < 8; ++i)
        for (int l = 0; l < 32; ++l) g[i].bytes[l] |= (b.qh[l] >> i & 1) << 4;
    unpack_scales(b.scales, from_half(b.d), from_half(b.dmin), g);
}

inline void unpack(const block_q6_K & b, Group<4> * g) {
    uint8_t bytes[QK_K];
    for (int i = 0; i < QK_K; i += 128) {
        nibbles(b.ql + i / 2, 64, bytes + i, bytes + i + 64);
        for (int l = 0; l < 128; ++l) bytes[i + l] |= (b.qh[i / 4 + l % 32] >> l / 32 * 2 & 3) << 4;
    }
    for (int i = 0; i < 16; ++i) {
        std::memcpy(g[i].bytes, bytes + 16 * i, 16);
        g[i].scale = from_half(b.d) * b.scales[i];
    }
}

template <class Block, int W>
void unpack_blocks(const char * row, int64_t blocks, int groups, Group<W> * g) {
    for (int64_t i = 0; i < blocks; ++i) unpack(((const Block *) row)[i], g + i * groups);
}

inline void unpack_row(ggml_type type, const char * row, int64_t kc, Group<8> * g) {
    switch (type) {
        case GGML_TYPE_Q8_0: unpack_blocks<block_q8_0>(row, kc / QK8_0, 1, g); break;
        case GGML_TYPE_Q4_0: unpack_blocks<block_q4_0>(row, kc / QK4_0, 1, g); break;
        case GGML_TYPE_Q4_1: unpack_blocks<block_q4_1>(row, kc / QK4_1, 1, g); break;
        case GGML_TYPE_Q5_0: unpack_blocks<block_q5_0>(row, kc / QK5_0, 1, g); break;
        case GGML_TYPE_Q5_1: unpack_blocks<block_q5_1>(row, kc / QK5_1, 1, g); break;
        case GGML_TYPE_Q4_K: unpack_blocks<block_q4_K>(row, kc / QK_K, 8, g); break;
        case GGML_TYPE_Q5_K: unpack_blocks<block_q5_K>(row, kc / QK_K, 8, g); break;
        default: GGML_ABORT("no groups of 32 bytes");
    }
}

inline void unpack_row(ggml_type, const char * row, int64_t kc, Group<4> * g) {
    unpack_blocks<block_q6_K>(row, kc / QK_K, 16, g);
}

// ---- activations ---------------------------------------------------------------------------------------------------

// a group of floats as bytes from -127 to 127
template <int W, int OFFSET>
void quantise(const float * x, Group<W> * g) {
    constexpr int vectors = W / 2;
    __m256 v[vectors], most = _mm256_setzero_ps();
    for (int i = 0; i < vectors; ++i) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        most = _mm256_max_ps(most, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v[i]));
    }
    float each[8];
    _mm256_storeu_ps(each, most);
    const float greatest = *std::max_element(each, each + 8), scale = greatest / 127;
    const __m256 by = _mm256_set1_ps(greatest > 0 ? 127 / greatest : 0);
    __m256i q[4], sum = _mm256_setzero_si256();
    for (int i = 0; i < vectors; ++i) {
        q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], by));
        sum = _mm256_add_epi32(sum, q[i]);
    }
    for (int i = vectors; i < 4; ++i) q[i] = _mm256_setzero_si256();
    const __m256i halves = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    const __m256i bytes = _mm256_permutevar8x32_epi32(halves, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    if (W == 8) _mm256_storeu_si256((__m256i *) g->bytes, bytes);
    else _mm_storeu_si128((__m128i *) g->bytes, _mm256_castsi256_si128(bytes));
    uint32_t sums[8], total = 0;  // of no sign, as those of what is no number overflow
    _mm256_storeu_si256((__m256i *) sums, sum);
    for (const uint32_t s : sums) total += s;
    g->scale = scale;
    const uint32_t start = 0u - OFFSET * total;
    if (OFFSET) std::memcpy(&g->more, &start, sizeof(start));
    else g->more = scale * (float) (int32_t) total;
}

// ---- micro-kernel --------------------------------------------------------------------------------------------------

#ifdef PACKED_VNNI
constexpr bool in_halves = false;
#else
constexpr bool in_halves = true;  // sums of 16 bits, and how many words go into them
#endif

// A group's sum of byte * byte, as floats, on top of those of the groups before; `more` are the scale and the other word of the
// activations' group.
template <bool LEAST>
inline void add_group(ints sum, vec scale, vec least, const float * more, float * to) {
    vec result = fma(floats_of(sum), mul(scale, all(more[0])), load(to));
    if (LEAST) result = fma(least, all(more[1]), result);
    store(to, result);
}

// all groups' results to where they go
template <int MV, int N>
void add_up(const float * results, const Sums & c) {
    PACKED_UNROLL
    for (int j = 0; j < N; ++j) {
        PACKED_UNROLL
        for (int i = 0; i < MV; ++i) {
            vec result = load(results + (j * MV + i) * VL);
            if (c.from) result = add(load(c.from + j * c.from_pitch + i * VL), result);
            store(c.to + j * c.to_pitch + i * VL, result);
        }
    }
}

#ifdef PACKED_AMX

// As below. A group's words, 16 rows of weights wide, are a tile as AMX wants it, and so are rows of activations.
template <int MV, int N, int W, int RUN, bool LEAST>
void tile_of_bytes(int64_t kw, const float * v, const float * s, int64_t lds, const Sums & c) {
    const AmxShapes shapes(N, W);
    alignas(64) float results[N * MV * VL];
    alignas(64) float sums[MV][N][VL];
    for (float & result : results) result = 0;
    for (int64_t g = 0; g < kw; g += Group<W>::words, v += Group<W>::words * MV * VL, s += Group<W>::words) {
        amx_products(s, lds, v, MV, sums[0][0]);
        if (MV > 1) amx_products(s, lds, v + VL, MV, sums[MV - 1][0]);
        for (int i = 0; i < MV; ++i) {
            const vec scale = load(v + (W * MV + i) * VL), least = load(v + ((W + 1) * MV + i) * VL);
            for (int j = 0; j < N; ++j) {
                const float * const more = s + j * lds + W;
                const ints start = LEAST ? no_ints() : one_word(more + 1), sum = add_words(start, words(sums[i][j]));
                add_group<LEAST>(sum, scale, least, more, results + (j * MV + i) * VL);
            }
        }
    }
    add_up<MV, N>(results, c);
}

#else

// As `tile` for floats; kw counts the words of all groups, of which RUN are added up at a time. Results of groups are added up
// in L1, as registers are short.
template <int MV, int N, int W, int RUN, bool LEAST>
void tile_of_bytes(int64_t kw, const float * v, const float * s, int64_t lds, const Sums & c) {
    alignas(64) float results[N * MV * VL];
    PACKED_UNROLL
    for (int i = 0; i < N * MV; ++i) store(results + i * VL, zero());
    for (int64_t g = 0; g < kw; g += Group<W>::words, v += Group<W>::words * MV * VL, s += Group<W>::words) {
        ints sums[N][MV];
        PACKED_UNROLL
        for (int j = 0; j < N; ++j) {
            PACKED_UNROLL
            for (int i = 0; i < MV; ++i) sums[j][i] = LEAST ? no_ints() : one_word(s + j * lds + W + 1);
        }
        PACKED_UNROLL
        for (int k0 = 0; k0 < W; k0 += RUN) {
            ints run[N][MV];
            PACKED_UNROLL
            for (int j = 0; j < N; ++j) {
                PACKED_UNROLL
                for (int i = 0; i < MV; ++i) run[j][i] = in_halves ? no_ints() : sums[j][i];
            }
            PACKED_UNROLL
            for (int k = k0; k < k0 + RUN; ++k) {
                ints x[MV];
                PACKED_UNROLL
                for (int i = 0; i < MV; ++i) x[i] = words(v + (k * MV + i) * VL);
                PACKED_UNROLL
                for (int j = 0; j < N; ++j) {
                    const ints y = one_word(s + j * lds + k);
                    PACKED_UNROLL
                    for (int i = 0; i < MV; ++i) run[j][i] = add_products(run[j][i], x[i], y);
                }
            }
            PACKED_UNROLL
            for (int j = 0; j < N; ++j) {
                PACKED_UNROLL
                for (int i = 0; i < MV; ++i) sums[j][i] = add_halves(sums[j][i], run[j][i]);
            }
        }
        PACKED_UNROLL
        for (int i = 0; i < MV; ++i) {
            const vec scale = load(v + (W * MV + i) * VL), least = load(v + ((W + 1) * MV + i) * VL);
            PACKED_UNROLL
            for (int j = 0; j < N; ++j)
                add_group<LEAST>(sums[j][i], scale, least, s + j * lds + W, results + (j * MV + i) * VL);
        }
    }
    add_up<MV, N>(results, c);
}

#endif

template <int MV, int W, int RUN, bool LEAST>
Tile tile_of_rows(int rows) {
    static constexpr Tile tiles[] = {
        tile_of_bytes<MV, 1, W, RUN, LEAST>,  tile_of_bytes<MV, 2, W, RUN, LEAST>,  tile_of_bytes<MV, 3, W, RUN, LEAST>,
        tile_of_bytes<MV, 4, W, RUN, LEAST>,  tile_of_bytes<MV, 5, W, RUN, LEAST>,  tile_of_bytes<MV, 6, W, RUN, LEAST>,
#ifdef PACKED_AVX512
        tile_of_bytes<MV, 7, W, RUN, LEAST>,  tile_of_bytes<MV, 8, W, RUN, LEAST>,  tile_of_bytes<MV, 9, W, RUN, LEAST>,
        tile_of_bytes<MV, 10, W, RUN, LEAST>, tile_of_bytes<MV, 11, W, RUN, LEAST>, tile_of_bytes<MV, 12, W, RUN, LEAST>,
#endif
    };
    static_assert(sizeof(tiles) / sizeof(tiles[0]) == NR, "one for each number of rows");
    return tiles[rows - 1];
}

// The factors of `multiply` for types with W words in a group, whose bytes are at most MOST and lie around OFFSET; 0 where they
// have least values.
template <int W, int MOST, int OFFSET>
struct OfBytes {
    using Group = packed::Group<W>;

    static constexpr int run = in_halves ? INT16_MAX / (2 * 127 * MOST) : W;
    static_assert(run > 0 && W % run == 0, "sums fit in halves of words");

    // half a panel in L1, as bytes are multiplied in half of the time that floats of 16 bits take
    static constexpr int64_t most = 512;
    static_assert(most / Group::values * Group::words <= KW, "it fits in the buffers");

    static constexpr int height = in_halves ? 4 : NR;

    static int64_t step(int64_t k, int64_t unit) { return block_of_k(most, k, unit); }

    static int64_t words(int64_t kc) { return kc / Group::values * Group::words; }

    static void rows(const Rows & s, int64_t r0, int64_t n, int64_t k0, int64_t kc, const Scratch & t, float * out) {
        for (int64_t i = 0; i < n; ++i, out += words(kc)) {
            if (i + 3 < n) s.prefetch(r0 + i + 3, k0, kc);
            const float * x = (const float *) s.at(r0 + i, k0);
            if (s.type != GGML_TYPE_F32) {
                s.floats(r0 + i, k0, kc, t.one_line());
                x = t.one_line();
            }
            for (int64_t g = 0; g < kc / Group::values; ++g) quantise<W, OFFSET>(x + g * Group::values, (Group *) out + g);
        }
    }

    static void panel(const Rows & v, int64_t r0, int n, int width, int64_t k0, int64_t kc, const Scratch & t, float * out) {
        const float * row[PV];
        for (int i = 0; i < width; ++i) {
            float * const line = t.lines_of_v() + (size_t) i * KW;
            row[i] = i < n ? line : t.zeros();
            if (i >= n) continue;
            if (i + 3 < n) v.prefetch(r0 + i + 3, k0, kc);
            unpack_row(v.type, v.at(r0 + i, k0), kc, (Group *) line);
        }
        transpose_panel(row, words(kc), width, out);
    }

    static Tile tile(int vectors, int rows) {
        return vectors == 1 ? tile_of_rows<1, W, run, OFFSET == 0>(rows) : tile_of_rows<2, W, run, OFFSET == 0>(rows);
    }
};

}  // namespace packed
#endif
