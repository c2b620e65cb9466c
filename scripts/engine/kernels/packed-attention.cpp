// Attention in blocks: the scores of QB queries with MC keys at a time, their softmax kept up to date as keys come.
#include "packed.h"

#include "packed-blocks.h"
#include "packed-exponential.h"

#include <cmath>
#include <type_traits>
#include <vector>

#ifdef PACKED

namespace packed {
namespace {

constexpr int QB = 32 * NR;  // queries in a block
constexpr int MC = KW;       // keys in a block: they are the k of the product with the values
constexpr int64_t longest_head = GROUP * KW;
constexpr uint16_t minus_infinity = 0xfc00;  // as a half

// One head's tensors, from the block's first query on.
struct Head {
    Rows queries, keys, values;
    const char * mask;  // of halves, a row for each query, or null
    size_t mask_stride;
    float scale;
    int64_t key_count, key_length, value_length;

    const ggml_fp16_t * mask_row(int query, int64_t key) const {
        return mask ? (const ggml_fp16_t *) (mask + query * mask_stride) + key : nullptr;
    }
};

// A thread's buffers for a block of queries.
class Block {
  public:
    Block(const Head & head, bool bf) : padded_length((head.value_length + VL - 1) / VL * VL) {
        static thread_local std::vector<float> memory;
        const int64_t panels = (head.value_length + PV - 1) / PV;
        const int64_t sizes[] = { QB * words_of(head.key_length, bf), QB * MC, bf ? QB * MC / 2 : 0, QB * padded_length,
                                  panels * PV * KW, 2 * (padded_length + PV), QB, QB };
        float ** const parts[] = { &queries, &scores, &pairs, &sums, &values, &lines, &greatest, &total };
        int64_t needed = 0;
        for (const int64_t size : sizes) needed += size;
        memory.resize(std::max<size_t>(memory.size(), needed));
        float * p = memory.data();
        for (int i = 0; i < 8; ++i) {
            *parts[i] = p;
            p += sizes[i];
        }
    }

    const int64_t padded_length;
    float * queries;   // [QB][words of a head]
    float * scores;    // [QB][MC], then their exponentials
    float * pairs;     // the exponentials in BF16
    float * sums;      // [QB][padded_length]: of values times exponentials
    float * values;    // panels of MC keys
    float * lines;     // two keys' values as floats
    float * greatest;  // score of each query so far
    float * total;     // of its exponentials
};

// how many of the keys from k0 on any query sees: those that fill up a multiple of 256 are masked out for all
int64_t seen(const Head & head, int queries, int64_t k0, int64_t count) {
    if (!head.mask) return count;
    int64_t last = 0;
    for (int j = 0; j < queries; ++j) {
        const ggml_fp16_t * m = head.mask_row(j, k0);
        for (int64_t i = count; i > last; --i)
            if (m[i - 1] != minus_infinity) last = i;
    }
    return last;
}

template <bool BF>
void score(const Head & head, const Block & b, int queries, int64_t k0, int64_t count, const Scratch & t) {
    const int64_t words = words_of(head.key_length, BF), step = OfFloats<BF>::step(head.key_length, 2);
    for (int64_t i = 0; i < count; i += PV) {
        const int here = (int) std::min<int64_t>(PV, count - i), width = width_of(here);
        for (int64_t d = 0; d < head.key_length; d += step)
            pack_panel<BF>(head.keys, k0 + i, here, width, d, std::min(step, head.key_length - d), t,
                           t.v() + words_of(d, BF) * width);
        for (int j = 0; j < queries; j += NR) {
            const int rows = std::min(NR, queries - j);
            tile_of<BF>(width / VL, rows)(words, t.v(), b.queries + j * words, words, { b.scores + j * MC + i, MC, nullptr, 0 });
        }
    }
}

// scores of one query, scaled and masked, become exponentials; what was summed before is scaled to the new greatest score
void soften(const Head & head, const Block & b, int j, int64_t k0, int64_t count) {
    float * s = b.scores + j * MC;
    const int64_t width = (count + VL - 1) / VL * VL;
    for (int64_t i = count; i < width; ++i) s[i] = -INFINITY;
    vec most = all(-INFINITY);
    const ggml_fp16_t * m = head.mask_row(j, k0);
    for (int64_t i = 0; i < width; i += VL) {
        vec x = mul(load(s + i), all(head.scale));
        if (m && i + VL <= count) {
            x = add(x, load(m + i));
        } else if (m) {
            float masked[VL];
            for (int l = 0; l < VL; ++l) masked[l] = i + l < count ? GGML_CPU_FP16_TO_FP32(m[i + l]) : 0;
            x = add(x, load(masked));
        }
        store(s + i, x);
        most = max(most, x);
    }
    const float now = std::max(b.greatest[j], greatest(most));
    if (now == -INFINITY) {
        std::memset(s, 0, width * sizeof(float));
        return;
    }
    vec sums = zero();
    for (int64_t i = 0; i < width; i += VL) {
        const vec e = exponential(add(load(s + i), all(-now)));
        store(s + i, e);
        sums = add(sums, e);
    }
    if (now > b.greatest[j]) {
        const float less = b.greatest[j] == -INFINITY ? 0 : std::exp(b.greatest[j] - now);
        float * out = b.sums + j * b.padded_length;
        for (int64_t i = 0; i < b.padded_length; i += VL) store(out + i, mul(load(out + i), all(less)));
        b.total[j] *= less;
        b.greatest[j] = now;
    }
    b.total[j] += sum(sums);
}

// values of the keys from k0 on as panels [key][PV]; they run along the head already
template <bool BF>
void pack_values(const Head & head, const Block & b, int64_t k0, int64_t count) {
    const int64_t vectors = b.padded_length / VL;
    float * first = b.lines, * second = b.lines + b.padded_length + PV;
    std::memset(b.lines, 0, 2 * (b.padded_length + PV) * sizeof(float));
    for (int64_t k = 0, word = 0; k < count; k += BF ? 2 : 1, ++word) {
        head.values.floats(k0 + k, 0, head.value_length, first);
        if (BF && k + 1 < count) head.values.floats(k0 + k + 1, 0, head.value_length, second);
        if (BF && k + 1 == count) std::memset(second, 0, head.value_length * sizeof(float));
        for (int64_t v = 0; v < vectors; ++v) {
            const int width = v % 2 == 0 && v + 1 == vectors ? VL : PV;
            const vec x = load(first + v * VL);
            store(b.values + v / 2 * PV * KW + word * width + v % 2 * VL, BF ? pairs_of(x, load(second + v * VL)) : x);
        }
    }
}

template <bool BF>
void weigh(const Head & head, const Block & b, int queries, int64_t k0, int64_t count) {
    pack_values<BF>(head, b, k0, count);
    const int64_t words = words_of(count, BF), pitch = BF ? MC / 2 : MC;
    if (BF)
        for (int j = 0; j < queries; ++j) to_pairs(b.scores + j * MC, count, b.pairs + j * pitch);
    const float * weights = BF ? b.pairs : b.scores;
    for (int64_t i = 0; i < b.padded_length; i += PV) {
        const int vectors = i + PV <= b.padded_length ? 2 : 1;
        for (int j = 0; j < queries; j += NR) {
            const Tile run = tile_of<BF>(vectors, std::min(NR, queries - j));
            float * const sums = b.sums + j * b.padded_length + i;
            run(words, b.values + i * KW, weights + j * pitch, pitch, { sums, b.padded_length, sums, b.padded_length });
        }
    }
}

template <bool BF>
void attend(const Head & head, int queries, char * out, size_t out_stride) {
    const Scratch & t = Scratch::of_this_thread();
    const Block b(head, BF);
    const int64_t words = words_of(head.key_length, BF), step = OfFloats<BF>::step(head.key_length, 2);
    for (int64_t d = 0; d < head.key_length; d += step)
        copy_rows<BF>(head.queries, 0, queries, d, std::min(step, head.key_length - d), t, b.queries + words_of(d, BF), words);
    std::fill(b.sums, b.sums + queries * b.padded_length, 0.0f);
    std::fill(b.greatest, b.greatest + queries, -INFINITY);
    std::fill(b.total, b.total + queries, 0.0f);
    for (int64_t k0 = 0; k0 < head.key_count; k0 += MC) {
        const int64_t count = seen(head, queries, k0, std::min<int64_t>(MC, head.key_count - k0));
        if (count == 0) continue;
        score<BF>(head, b, queries, k0, count, t);
        for (int j = 0; j < queries; ++j) soften(head, b, j, k0, count);
        weigh<BF>(head, b, queries, k0, count);
    }
    for (int j = 0; j < queries; ++j) {
        float * to = (float *) (out + j * out_stride);
        const float by = b.total[j] > 0 ? 1 / b.total[j] : 0;
        for (int64_t i = 0; i < head.value_length; ++i) to[i] = b.sums[j * b.padded_length + i] * by;
    }
}

// the matrix of head h of batch b, from row `first` on; several heads of queries may share one of keys
Rows rows_of(const ggml_tensor * t, const ggml_tensor * q, int64_t first, int64_t h, int64_t b) {
    const int64_t head = h / (q->ne[2] / t->ne[2]), batch = b / (q->ne[3] / t->ne[3]);
    return { t->type, (const char *) t->data + first * t->nb[1] + head * t->nb[2] + batch * t->nb[3], t->nb[1] };
}

float parameter(const ggml_tensor * dst, int i) {
    float x;
    std::memcpy(&x, dst->op_params + i, sizeof(x));
    return x;
}

bool ours(const ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0], * k = dst->src[1], * v = dst->src[2], * mask = dst->src[3];
    const float bias = parameter(dst, 1), cap = parameter(dst, 2);
    const bool sinks = dst->src[4] != nullptr;
    if (bias != 0 || cap != 0 || sinks) return false;
    if (q->ne[0] > longest_head || v->ne[0] > longest_head) return false;
    const auto floats = [](const ggml_tensor * t) {
        return (t->type == GGML_TYPE_F32 || t->type == GGML_TYPE_F16) && Rows::readable(t);
    };
    if (q->type != GGML_TYPE_F32 || !floats(q) || !floats(k) || !floats(v) || dst->nb[0] != sizeof(float)) return false;
    return !mask || (mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(ggml_fp16_t));
}

}  // namespace
}  // namespace packed

bool ggml_packed_flash_attn(const ggml_compute_params * params, ggml_tensor * dst) {
    using namespace packed;
    if (!ours(dst)) return false;
    const ggml_tensor * q = dst->src[0], * k = dst->src[1], * v = dst->src[2], * mask = dst->src[3];
    const int64_t blocks = (q->ne[1] + QB - 1) / QB;
    share(params, blocks * q->ne[2] * q->ne[3], [&](int64_t job) {
        const int64_t first = job % blocks * QB, h = job / blocks % q->ne[2], b = job / blocks / q->ne[2];
        Head head = { rows_of(q, q, first, h, b), rows_of(k, q, 0, h, b), rows_of(v, q, 0, h, b), nullptr, 0,
                      parameter(dst, 0), k->ne[1], k->ne[0], v->ne[0] };
        if (mask) {
            head.mask = (const char *) mask->data + first * mask->nb[1] + h % mask->ne[2] * mask->nb[2] + b % mask->ne[3] * mask->nb[3];
            head.mask_stride = mask->nb[1];
        }
        char * out = (char *) dst->data + h * dst->nb[1] + first * dst->nb[2] + b * dst->nb[3];
        const int queries = (int) std::min<int64_t>(QB, q->ne[1] - first);
        factors() == Factors::bf16 ? attend<true>(head, queries, out, dst->nb[2]) : attend<false>(head, queries, out, dst->nb[2]);
    });
    return true;
}

#else

bool ggml_packed_flash_attn(const ggml_compute_params *, ggml_tensor *) { return false; }

#endif
