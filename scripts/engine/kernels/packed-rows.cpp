// What lies between products and convolutions: norms, activations, copies and the like, a plane or a row at a time.
//
// ggml computes these value by value where rows are short, transposed, padded or widened; here they go in vectors.
#include "packed.h"

#include "packed-blocks.h"
#include "packed-exponential.h"

#include <cmath>

#ifdef PACKED

namespace packed {
namespace {

// the part of [0, count) that is this thread's
struct Part {
    int64_t first, end;

    Part(const ggml_compute_params * params, int64_t count)
        : first(count * params->ith / params->nth), end(count * (params->ith + 1) / params->nth) {}
};

bool floats(const ggml_tensor * t) { return t->type == GGML_TYPE_F32; }

bool contiguous_floats(const ggml_tensor * t) { return floats(t) && ggml_is_contiguous(t); }

float * values(const ggml_tensor * t) { return (float *) t->data; }

// row i of a tensor, counted over all of its outer dimensions
char * row_of(const ggml_tensor * t, int64_t i) {
    const int64_t i1 = i % t->ne[1], i2 = i / t->ne[1] % t->ne[2], i3 = i / t->ne[1] / t->ne[2];
    return (char *) t->data + i1 * t->nb[1] + i2 * t->nb[2] + i3 * t->nb[3];
}

// Vectors of n values, then the rest through vectors that are filled up with zeros.
template <class Combine>
void combine(const float * x, const float * y, float * to, int64_t n, const Combine & f) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) store(to + i, f(load(x + i), load(y + i)));
    if (i == n) return;
    float last[2][VL] = {};
    std::memcpy(last[0], x + i, (n - i) * sizeof(float));
    std::memcpy(last[1], y + i, (n - i) * sizeof(float));
    store(last[0], f(load(last[0]), load(last[1])));
    std::memcpy(to + i, last[0], (n - i) * sizeof(float));
}

template <class Change>
void change(const float * x, float * to, int64_t n, const Change & f) {
    combine(x, x, to, n, [&](vec v, vec) { return f(v); });
}

// ---- arithmetic ----------------------------------------------------------------------------------------------------

// the tanh form, as x times the logistic function; ggml's own looks a half up in a table
vec gelu_of(vec x) {
    const float twice = 2 * 0.79788456080286535588f;
    const vec inner = mul(mul(all(-twice), x), fma(mul(all(0.044715f), x), x, all(1)));
    return divide(x, add(all(1), exponential(inner)));
}

bool gelu(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * x = dst->src[0];
    if (!floats(x) || !floats(dst) || x->nb[0] != sizeof(float) || dst->nb[0] != sizeof(float)) return false;
    const Part rows(params, ggml_nrows(x));
    for (int64_t i = rows.first; i < rows.end; ++i) {
        change((const float *) row_of(x, i), (float *) row_of(dst, i), x->ne[0], gelu_of);
    }
    return true;
}

// One value for each plane, as a convolution's bias or a group norm's weights. Planes may be of few values, so that it
// takes long to go through them row by row.
template <class Operation>
bool with_value(const ggml_compute_params * params, ggml_tensor * dst, const Operation & f) {
    const ggml_tensor * x = dst->src[0], * y = dst->src[1];
    const bool one_a_plane = y->ne[0] == 1 && y->ne[1] == 1 && y->ne[2] == x->ne[2] && y->ne[3] == 1;
    if (!one_a_plane || !contiguous_floats(x) || !contiguous_floats(y) || !contiguous_floats(dst)) return false;
    const int64_t plane = x->ne[0] * x->ne[1];
    const Part planes(params, x->ne[2] * x->ne[3]);
    for (int64_t i = planes.first; i < planes.end; ++i) {
        const vec value = all(values(y)[i % x->ne[2]]);
        change(values(x) + i * plane, values(dst) + i * plane, plane, [&](vec v) { return f(v, value); });
    }
    return true;
}

// All of y at once, again for each index of the dimensions that it lacks, as the turns of positions that all heads share.
// Rows may be of two values, so that it takes long to go through them one by one.
template <class Operation>
bool with_all(const ggml_compute_params * params, ggml_tensor * dst, const Operation & f) {
    const ggml_tensor * x = dst->src[0], * y = dst->src[1];
    if (!contiguous_floats(x) || !contiguous_floats(y) || !contiguous_floats(dst)) return false;
    const int64_t count = ggml_nelements(y);
    int64_t alike = 1;
    for (int d = 0; d < GGML_MAX_DIMS && y->ne[d] == x->ne[d]; ++d) alike *= x->ne[d];
    if (alike != count || count < VL) return false;
    const Part part(params, ggml_nelements(x));
    for (int64_t i = part.first, n; i < part.end; i += n) {
        const int64_t at = i % count;
        n = std::min(count - at, part.end - i);
        combine(values(x) + i, values(y) + at, values(dst) + i, n, f);
    }
    return true;
}

template <class Operation>
bool binary(const ggml_compute_params * params, ggml_tensor * dst, const Operation & f) {
    return with_value(params, dst, f) || with_all(params, dst, f);
}

// Sums in double, as ggml's: of the values and of their squares, in one pass.
struct Moments {
    double mean, variance;

    Moments(const float * x, int64_t n) {
        __m256d sum[2] = { _mm256_setzero_pd(), _mm256_setzero_pd() }, squares[2] = { sum[0], sum[0] };
        int64_t i = 0;
        for (; i + 8 <= n; i += 8)
            for (int h = 0; h < 2; ++h) {
                const __m256d v = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4 * h));
                sum[h] = _mm256_add_pd(sum[h], v);
                squares[h] = _mm256_fmadd_pd(v, v, squares[h]);
            }
        double total = added(_mm256_add_pd(sum[0], sum[1])), of_squares = added(_mm256_add_pd(squares[0], squares[1]));
        for (; i < n; ++i) {
            total += x[i];
            of_squares += (double) x[i] * x[i];
        }
        mean = total / n;
        variance = std::max(0.0, of_squares / n - mean * mean);
    }

  private:
    static double added(__m256d v) {
        double x[4];
        _mm256_storeu_pd(x, v);
        return (x[0] + x[2]) + (x[1] + x[3]);
    }
};

bool group_norm(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * x = dst->src[0];
    if (!contiguous_floats(x) || !contiguous_floats(dst)) return false;
    float epsilon;
    std::memcpy(&epsilon, dst->op_params + 1, sizeof(epsilon));
    const int64_t plane = x->ne[0] * x->ne[1], channels = x->ne[2], groups = dst->op_params[0];
    const int64_t together = (channels + groups - 1) / groups;
    const Part parts(params, groups * x->ne[3]);
    for (int64_t i = parts.first; i < parts.end; ++i) {
        const int64_t first = i % groups * together, end = std::min(channels, first + together);
        if (first >= end) continue;  // more groups than there are channels for
        const int64_t at = (i / groups * channels + first) * plane, count = (end - first) * plane;
        const Moments moments(values(x) + at, count);
        const float scale = 1 / std::sqrt((float) moments.variance + epsilon);
        const vec by = all(scale), mean = all((float) -moments.mean);
        change(values(x) + at, values(dst) + at, count, [&](vec v) { return mul(add(v, mean), by); });
    }
    return true;
}

// ---- copies --------------------------------------------------------------------------------------------------------

// to halves, row by row
void narrow(const float * x, int64_t n, ggml_fp16_t * y) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *) (y + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < n; ++i) y[i] = GGML_CPU_FP32_TO_FP16(x[i]);
}

// Columns [first, end) of a source whose columns are what runs along memory, as rows of dst.
void transpose(const ggml_tensor * x, const char * from, float * to, int64_t first, int64_t end) {
    const int64_t n = x->ne[0];
    const auto at = [&](int64_t i) { return (const float *) (from + i * x->nb[0]); };
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const float * rows[8];
        for (int q = 0; q < 8; ++q) rows[q] = at(i + q);
        int64_t k = first;
        for (; k + 8 <= end; k += 8) transpose_8x8(rows, k, to + k * n + i, n);
        for (; k < end; ++k)
            for (int q = 0; q < 8; ++q) to[k * n + i + q] = rows[q][k];
    }
    for (; i < n; ++i)
        for (int64_t k = first; k < end; ++k) to[k * n + i] = at(i)[k];
}

bool copy(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * x = dst->src[0];
    if (!floats(x) || !ggml_is_contiguous(dst) || !ggml_are_same_shape(x, dst)) return false;
    if (dst->type == GGML_TYPE_F16 && x->nb[0] == sizeof(float)) {
        const Part rows(params, ggml_nrows(x));
        for (int64_t i = rows.first; i < rows.end; ++i)
            narrow((const float *) row_of(x, i), x->ne[0], (ggml_fp16_t *) row_of(dst, i));
        return true;
    }
    if (!floats(dst) || x->nb[1] != sizeof(float) || x->nb[0] % sizeof(float) != 0) return false;
    const Part columns(params, x->ne[1]);
    for (int64_t i = 0; i < x->ne[2] * x->ne[3]; ++i) {
        const char * from = (const char *) x->data + i % x->ne[2] * x->nb[2] + i / x->ne[2] * x->nb[3];
        transpose(x, from, values(dst) + i * x->ne[0] * x->ne[1], columns.first, columns.end);
    }
    return true;
}

bool concat(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * const x[] = { dst->src[0], dst->src[1] };
    if (!contiguous_floats(x[0]) || !contiguous_floats(x[1]) || !contiguous_floats(dst)) return false;
    const int dimension = dst->op_params[0];
    int64_t inner = 1, outer = 1;  // values of one index of that dimension, and how often it is gone through
    for (int d = 0; d < dimension; ++d) inner *= dst->ne[d];
    for (int d = dimension + 1; d < GGML_MAX_DIMS; ++d) outer *= dst->ne[d];
    for (int64_t i = 0, begin = 0; i < outer; ++i)
        for (const ggml_tensor * each : x) {
            const int64_t count = each->ne[dimension] * inner;
            const Part part(params, count);
            std::memcpy(values(dst) + begin + part.first, values(each) + i * count + part.first,
                        (part.end - part.first) * sizeof(float));
            begin += count;
        }
    return true;
}

bool pad(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * x = dst->src[0];
    const int32_t * const around = dst->op_params;  // before and behind, for each dimension; then whether it is a torus
    if (!floats(x) || x->nb[0] != sizeof(float) || !contiguous_floats(dst) || around[8]) return false;
    const Part rows(params, ggml_nrows(dst));
    for (int64_t i = rows.first; i < rows.end; ++i) {
        float * const to = (float *) row_of(dst, i);
        const int64_t i1 = i % dst->ne[1] - around[2], i2 = i / dst->ne[1] % dst->ne[2] - around[4];
        const int64_t i3 = i / dst->ne[1] / dst->ne[2] - around[6];
        const auto inside = [](int64_t at, int64_t n) { return at >= 0 && at < n; };
        if (!inside(i1, x->ne[1]) || !inside(i2, x->ne[2]) || !inside(i3, x->ne[3])) {
            std::memset(to, 0, dst->ne[0] * sizeof(float));
            continue;
        }
        const char * const from = (const char *) x->data + i1 * x->nb[1] + i2 * x->nb[2] + i3 * x->nb[3];
        std::memset(to, 0, around[0] * sizeof(float));
        std::memcpy(to + around[0], from, x->ne[0] * sizeof(float));
        std::memset(to + around[0] + x->ne[0], 0, around[1] * sizeof(float));
    }
    return true;
}

void twice(const float * x, int64_t n, float * y) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i), low = _mm256_unpacklo_ps(v, v), high = _mm256_unpackhi_ps(v, v);
        _mm256_storeu_ps(y + 2 * i, _mm256_permute2f128_ps(low, high, 0x20));
        _mm256_storeu_ps(y + 2 * i + 8, _mm256_permute2f128_ps(low, high, 0x31));
    }
    for (; i < n; ++i) y[2 * i] = y[2 * i + 1] = x[i];
}

// each pixel becomes two by two
bool upscale(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * x = dst->src[0];
    const bool doubled = dst->ne[0] == 2 * x->ne[0] && dst->ne[1] == 2 * x->ne[1] && dst->ne[2] == x->ne[2] && dst->ne[3] == x->ne[3];
    if (!doubled || dst->op_params[0] != GGML_SCALE_MODE_NEAREST) return false;
    if (!contiguous_floats(x) || !contiguous_floats(dst)) return false;
    const Part rows(params, ggml_nrows(x));
    for (int64_t i = rows.first; i < rows.end; ++i) {
        float * const to = values(dst) + 2 * i * dst->ne[0];
        twice(values(x) + i * x->ne[0], x->ne[0], to);
        std::memcpy(to + dst->ne[0], to, dst->ne[0] * sizeof(float));
    }
    return true;
}

}  // namespace
}  // namespace packed

bool ggml_packed_rows(const ggml_compute_params * params, ggml_tensor * dst) {
    using namespace packed;
    switch (dst->op) {
        case GGML_OP_ADD: return binary(params, dst, [](vec x, vec y) { return add(x, y); });
        case GGML_OP_MUL: return binary(params, dst, [](vec x, vec y) { return mul(x, y); });
        case GGML_OP_UNARY: return ggml_get_unary_op(dst) == GGML_UNARY_OP_GELU && gelu(params, dst);
        case GGML_OP_GROUP_NORM: return group_norm(params, dst);
        case GGML_OP_CPY:
        case GGML_OP_CONT:
        case GGML_OP_DUP: return copy(params, dst);
        case GGML_OP_CONCAT: return concat(params, dst);
        case GGML_OP_PAD: return pad(params, dst);
        case GGML_OP_UPSCALE: return upscale(params, dst);
        default: return false;
    }
}

#else

bool ggml_packed_rows(const ggml_compute_params *, ggml_tensor *) { return false; }

#endif
