// Convolutions of 3x3 by Winograd's minimal filtering (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
// 2015): tiles of M x M results take (M + 2)^2 products for each pair of channels instead of 9 M^2.
//
// Weights and windows of (M + 2)^2 pixels are transformed, the products of each of the (M + 2)^2 places are matrix products
// over the channels, and sums of these are the results. Tiles are numbered along the rows of the picture, and a vector
// holds one value of as many neighbours among them. Factors are floats whatever other operations take: BF16 would halve the
// products at best, and sums of pixels would lose more by it than pixels.
#include "packed.h"

#include "packed-blocks.h"

#include <vector>

#ifdef PACKED

namespace packed {
namespace {

constexpr int CB = 64;    // channels in a block, at most
constexpr int LINE = 16;  // floats between the matrices of two places, which thus lie on different lines of a cache

// ---- transforms along one axis ---------------------------------------------------------------------------------------

template <int M>
struct Filtering;

// points 0, 1, -1 and infinity
template <>
struct Filtering<2> {
    template <class Vec>
    static void weights(const Vec * g, Vec * u) {
        const Vec half = Vec(0.5f), outer = (g[0] + g[2]) * half, middle = g[1] * half;
        u[0] = g[0];
        u[1] = outer + middle;
        u[2] = outer - middle;
        u[3] = g[2];
    }
    template <class Vec>
    static void pixels(const Vec * d, Vec * v) {
        v[0] = d[0] - d[2];
        v[1] = d[1] + d[2];
        v[2] = d[2] - d[1];
        v[3] = d[1] - d[3];
    }
    template <class Vec>
    static void results(const Vec * m, Vec * y) {
        y[0] = m[0] + m[1] + m[2];
        y[1] = m[1] - m[2] - m[3];
    }
};

// points 0, 1, -1, 2, -2 and infinity
template <>
struct Filtering<4> {
    template <class Vec>
    static void weights(const Vec * g, Vec * u) {
        const Vec sixth = Vec(-1 / 6.0f), ends = (g[0] + g[2]) * sixth, middle = g[1] * sixth;
        const Vec far = g[0] * Vec(1 / 24.0f) + g[2] * Vec(1 / 6.0f), near = g[1] * Vec(1 / 12.0f);
        u[0] = g[0] * Vec(0.25f);
        u[1] = ends + middle;
        u[2] = ends - middle;
        u[3] = far + near;
        u[4] = far - near;
        u[5] = g[2];
    }
    template <class Vec>
    static void pixels(const Vec * d, Vec * v) {
        const Vec two = Vec(2), four = Vec(4), five = Vec(5);
        const Vec even = d[4] - four * d[2], odd = d[3] - four * d[1];
        const Vec outer = d[4] - d[2], inner = two * (d[3] - d[1]);
        v[0] = four * d[0] + (d[4] - five * d[2]);
        v[1] = even + odd;
        v[2] = even - odd;
        v[3] = outer + inner;
        v[4] = outer - inner;
        v[5] = four * d[1] + (d[5] - five * d[3]);
    }
    template <class Vec>
    static void results(const Vec * m, Vec * y) {
        const Vec a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], d = m[3] - m[4];
        y[0] = m[0] + a + c;
        y[1] = b + Vec(2) * d;
        y[2] = a + Vec(4) * c;
        y[3] = b + Vec(8) * d + m[5];
    }
};

// vectors with operators, which transforms read better with
struct Floats {
    vec x;
    Floats() = default;
    Floats(vec v) : x(v) {}
    explicit Floats(float v) : x(all(v)) {}
    friend Floats operator+(Floats a, Floats b) { return add(a.x, b.x); }
    friend Floats operator-(Floats a, Floats b) { return sub(a.x, b.x); }
    friend Floats operator*(Floats a, Floats b) { return mul(a.x, b.x); }
};

// eight of them, whatever vectors are: the weights of as many channels
struct Eight {
    __m256 x;
    Eight() = default;
    Eight(__m256 v) : x(v) {}
    explicit Eight(float v) : x(_mm256_set1_ps(v)) {}
    friend Eight operator+(Eight a, Eight b) { return _mm256_add_ps(a.x, b.x); }
    friend Eight operator-(Eight a, Eight b) { return _mm256_sub_ps(a.x, b.x); }
    friend Eight operator*(Eight a, Eight b) { return _mm256_mul_ps(a.x, b.x); }
};

// ---- one operation ---------------------------------------------------------------------------------------------------

template <int M>
class Winograd {
  public:
    static constexpr int E = M + 2, PLACES = E * E;
    static constexpr int TILES = 128;  // in a job, at most
    static constexpr int ROWS = 128;   // of weights, the same

    explicit Winograd(ggml_tensor * dst) : dst_(dst), w_(dst->src[0]), x_(dst->src[1]) {
        tiles_across_ = (dst->ne[0] + M - 1) / M;
        tiles_down_ = (dst->ne[1] + M - 1) / M;
        channels_ = x_->ne[2];
        for (int64_t t = 0; t < tiles_across_; t += VL) spans_.push_back(span(t));
    }

    void compute(const ggml_compute_params * params) const {
        const int64_t tiles = tiles_across_ * tiles_down_, rows = w_->ne[3], pictures = dst_->ne[3];
        const auto parts = [](int64_t n, int64_t most) { return (n + most - 1) / most; };
        int64_t t_jobs = parts(tiles, TILES), r_jobs = parts(rows, ROWS);
        while (params->nth > 1 && pictures * t_jobs * r_jobs < 4 * params->nth && rows / r_jobs > 4 * NR) r_jobs *= 2;
        const int64_t t_step = parts(parts(tiles, t_jobs), PV) * PV, r_step = parts(rows, r_jobs);
        share(params, pictures * t_jobs * r_jobs, [&](int64_t i) {
            const int64_t t0 = i / r_jobs % t_jobs * t_step, r0 = i % r_jobs * r_step;
            const int64_t t1 = std::min(tiles, t0 + t_step), r1 = std::min(rows, r0 + r_step);
            if (t0 < t1 && r0 < r1) Job(*this, i / (t_jobs * r_jobs), t0, t1, r0, r1).run();
        });
    }

  private:
    // The columns that a vector of neighbouring tiles needs: two loads of M vectors each, the second M columns further on.
    struct Span {
        int64_t column;
        lanes inside[2 * M];
    };

    Span span(int64_t tile) const {
        Span s = { tile * M - dst_->op_params[2], {} };
        for (int i = 0; i < 2 * M; ++i) {
            const int64_t first = s.column + i / M * M + i % M * VL;
            const auto lane = [&](int64_t at) { return (int) std::min<int64_t>(VL, std::max<int64_t>(0, at - first)); };
            s.inside[i] = lanes_between(lane(0), lane(x_->ne[0]));
        }
        return s;
    }

    // columns 0, M, 2 M ... of M vectors, then 1, M + 1 ...
    static void phases(const float * p, const lanes * inside, Floats * out) {
        vec a[M];
        PACKED_UNROLL
        for (int i = 0; i < M; ++i) a[i] = load(p + i * VL, inside[i]);
        if constexpr (M == 2) {
            out[0] = evens(a[0], a[1]);
            out[1] = odds(a[0], a[1]);
        } else {
            const vec e0 = evens(a[0], a[1]), e1 = evens(a[2], a[3]), o0 = odds(a[0], a[1]), o1 = odds(a[2], a[3]);
            out[0] = evens(e0, e1);
            out[1] = evens(o0, o1);
            out[2] = odds(e0, e1);
            out[3] = odds(o0, o1);
        }
    }

    // the inverse: M vectors of results as neighbours in a row
    static void interleave(const Floats * y, float * out) {
        if constexpr (M == 2) {
            store(out, interleaved_low(y[0].x, y[1].x));
            store(out + VL, interleaved_high(y[0].x, y[1].x));
        } else {
            const vec even0 = interleaved_low(y[0].x, y[2].x), even1 = interleaved_high(y[0].x, y[2].x);
            const vec odd0 = interleaved_low(y[1].x, y[3].x), odd1 = interleaved_high(y[1].x, y[3].x);
            store(out, interleaved_low(even0, odd0));
            store(out + VL, interleaved_high(even0, odd0));
            store(out + 2 * VL, interleaved_low(even1, odd1));
            store(out + 3 * VL, interleaved_high(even1, odd1));
        }
    }

    // Tiles [t0, t1) of rows [r0, r1) of the weights: one thread's work.
    class Job {
      public:
        Job(const Winograd & o, int64_t picture, int64_t t0, int64_t t1, int64_t r0, int64_t r1)
            : o_(o), x_((const char *) o.x_->data + picture * o.x_->nb[3]),
              c_((float *) ((char *) o.dst_->data + picture * o.dst_->nb[3])),
              t0_(t0), r0_(r0), tiles_(t1 - t0), rows_(r1 - r0) {
            ty0_ = t0 / o.tiles_across_;
            down_ = (t1 - 1) / o.tiles_across_ - ty0_ + 1;
            line_ = (down_ + 1) * o.tiles_across_ + VL;
            panels_ = (tiles_ + PV - 1) / PV;
            of_weights_ = rows_ * CB + LINE;
            of_windows_ = panels_ * PV * CB + LINE;
            of_sums_ = rows_ * panels_ * PV + LINE;
            const size_t weights = PLACES * of_weights_, windows = PLACES * of_windows_, sums = PLACES * of_sums_;
            const size_t lines = M * E * line_;
            weights_ = Memory::of_this_thread(weights + windows + sums + lines + CB * 9);
            windows_ = weights_ + weights;
            sums_ = windows_ + windows;
            lines_ = sums_ + sums;
            row_ = lines_ + lines;
        }

        void run() const {
            const int64_t blocks = (o_.channels_ + CB - 1) / CB, step = padded((o_.channels_ + blocks - 1) / blocks);
            for (int64_t c0 = 0; c0 < o_.channels_; c0 += step) {
                const int64_t count = std::min(step, o_.channels_ - c0);
                for (int64_t r = 0; r < rows_; ++r) transform_weights(r, c0, count);
                for (int64_t c = 0; c < count; ++c) {
                    along_rows(c0 + c);
                    along_columns(c);
                }
                multiply_places(count, c0 > 0);
            }
            for (int64_t r = 0; r < rows_; ++r) write_results(r);
        }

      private:
        static int64_t padded(int64_t channels) { return (channels + 7) / 8 * 8; }

        void transform_weights(int64_t row, int64_t c0, int64_t count) const {
            const int64_t pitch = padded(count);
            const size_t stride = o_.channels_ * 9 * ggml_type_size(o_.w_->type);
            const Rows rows = { o_.w_->type, (const char *) o_.w_->data, stride };
            if (row + 1 < rows_) rows.prefetch(r0_ + row + 1, c0 * 9, count * 9);
            rows.floats(r0_ + row, c0 * 9, count * 9, row_);
            std::memset(row_ + count * 9, 0, (pitch - count) * 9 * sizeof(float));
            for (int64_t c = 0; c < pitch; c += 8) {
                alignas(32) float taps[9 * 8];
                const float * of_channel[8];
                for (int i = 0; i < 8; ++i) of_channel[i] = row_ + (c + i) * 9;
                transpose_8x8(of_channel, 0, taps, 8);
                for (int i = 0; i < 8; ++i) taps[64 + i] = of_channel[i][8];
                Eight half[E][3], column[3], u[E];
                PACKED_UNROLL
                for (int x = 0; x < 3; ++x) {
                    PACKED_UNROLL
                    for (int y = 0; y < 3; ++y) column[y] = _mm256_load_ps(taps + (y * 3 + x) * 8);
                    Filtering<M>::weights(column, u);
                    PACKED_UNROLL
                    for (int y = 0; y < E; ++y) half[y][x] = u[y];
                }
                PACKED_UNROLL
                for (int y = 0; y < E; ++y) {
                    Filtering<M>::weights(half[y], u);
                    PACKED_UNROLL
                    for (int x = 0; x < E; ++x)
                        _mm256_storeu_ps(weights_ + (y * E + x) * of_weights_ + row * pitch + c, u[x].x);
                }
            }
        }

        // Row y of the picture lies among those with the same remainder of y by M: the windows of a vector of tiles, which
        // may lie in several rows, are then vectors in memory as well.
        float * line(int remainder, int place) const { return lines_ + (remainder * E + place) * line_; }

        void along_rows(int64_t channel) const {
            const int64_t first = ty0_ * M - o_.dst_->op_params[3];
            for (int64_t i = 0; i < down_ * M + 2; ++i) {
                const int64_t y = first + i, at = i / M * o_.tiles_across_;
                float * out[E];
                for (int p = 0; p < E; ++p) out[p] = line((int) (i % M), p) + at;
                if (y < 0 || y >= o_.x_->ne[1]) {
                    for (int p = 0; p < E; ++p) std::memset(out[p], 0, o_.tiles_across_ * sizeof(float));
                    continue;
                }
                const int64_t width = o_.x_->ne[0];
                const float * row = (const float *) (x_ + channel * o_.x_->nb[2]) + y * width;
                const char * const next = (const char *) row + o_.x_->nb[2];
                if (channel + 1 < o_.channels_)  // planes are far apart
                    for (int64_t q = 0; q < width; q += 16) _mm_prefetch(next + q * sizeof(float), _MM_HINT_T0);
                for (size_t s = 0; s < o_.spans_.size(); ++s) {
                    Floats d[2 * M], v[E];
                    phases(row + o_.spans_[s].column, o_.spans_[s].inside, d);
                    phases(row + o_.spans_[s].column + M, o_.spans_[s].inside + M, d + M);
                    Filtering<M>::pixels(d, v);
                    PACKED_UNROLL
                    for (int p = 0; p < E; ++p) store(out[p] + s * VL, v[p].x);
                }
            }
        }

        void along_columns(int64_t c) const {
            const int64_t at = t0_ - ty0_ * o_.tiles_across_;
            for (int64_t i = 0; i < tiles_; i += VL) {
                const int width = width_of(tiles_ - i / PV * PV);
                float * const out = windows_ + i / PV * PV * CB + c * width + i % PV;
                PACKED_UNROLL
                for (int x = 0; x < E; ++x) {
                    Floats d[E], v[E];
                    PACKED_UNROLL
                    for (int y = 0; y < E; ++y) d[y] = load(line(y % M, x) + at + i + y / M * o_.tiles_across_);
                    Filtering<M>::pixels(d, v);
                    PACKED_UNROLL
                    for (int y = 0; y < E; ++y) store(out + (y * E + x) * of_windows_, v[y].x);
                }
            }
        }

        void multiply_places(int64_t count, bool more) const {
            const int64_t pitch = panels_ * PV, lds = padded(count);
            for (int e = 0; e < PLACES; ++e)
                for (int64_t p = 0; p < panels_; ++p) {
                    const float * const v = windows_ + e * of_windows_ + p * PV * CB;
                    const int vectors = width_of(tiles_ - p * PV) / VL;
                    in_tiles(rows_, NR, [&](int64_t j, int n) {
                        const float * const weights = weights_ + e * of_weights_ + j * lds;
                        float * const sums = sums_ + e * of_sums_ + j * pitch + p * PV;
                        tile_of<false>(vectors, n)(count, v, weights, lds, { sums, pitch, more ? sums : nullptr, pitch });
                    });
                }
        }

        void write_results(int64_t row) const {
            const int64_t width = o_.dst_->ne[0], height = o_.dst_->ne[1], pitch = panels_ * PV;
            float * const c = c_ + (r0_ + row) * width * height;
            for (int64_t i = 0; i < tiles_; i += VL) {
                Floats half[M][E], m[E], y[M];
                PACKED_UNROLL
                for (int x = 0; x < E; ++x) {
                    PACKED_UNROLL
                    for (int e = 0; e < E; ++e) m[e] = load(sums_ + (e * E + x) * of_sums_ + row * pitch + i);
                    Filtering<M>::results(m, y);
                    PACKED_UNROLL
                    for (int q = 0; q < M; ++q) half[q][x] = y[q];
                }
                float lines[M][M * VL];
                PACKED_UNROLL
                for (int q = 0; q < M; ++q) {
                    Filtering<M>::results(half[q], y);
                    interleave(y, lines[q]);
                }
                const int64_t end = std::min(i + VL, tiles_);
                for (int64_t t = i; t < end;) {  // the tiles of a row at once
                    const int64_t ty = (t0_ + t) / o_.tiles_across_, tx = (t0_ + t) % o_.tiles_across_;
                    const int64_t here = std::min(end - t, o_.tiles_across_ - tx);
                    const int64_t columns = std::min(here * M, width - tx * M);
                    for (int64_t q = 0; q < std::min<int64_t>(M, height - ty * M); ++q)
                        std::memcpy(c + (ty * M + q) * width + tx * M, lines[q] + (t - i) * M, columns * sizeof(float));
                    t += here;
                }
            }
        }

        const Winograd & o_;
        const char * const x_;
        float * const c_;
        const int64_t t0_, r0_, tiles_, rows_;
        int64_t ty0_, down_, line_, panels_, of_weights_, of_windows_, of_sums_;
        float * weights_, * windows_, * sums_, * lines_, * row_;
    };

    // What a thread keeps between operations.
    class Memory {
      public:
        static float * of_this_thread(size_t floats) {
            static thread_local Memory memory;
            if (memory.size_ < floats) {
                ::operator delete(memory.words_, alignment);
                memory.words_ = (float *) ::operator new(floats * sizeof(float), alignment);
                memory.size_ = floats;
                std::memset(memory.words_, 0, floats * sizeof(float));
            }
            return memory.words_;
        }
        ~Memory() { ::operator delete(words_, alignment); }

      private:
        static constexpr std::align_val_t alignment{ 64 };
        float * words_ = nullptr;
        size_t size_ = 0;
    };

    const ggml_tensor * dst_, * w_, * x_;
    int64_t tiles_across_, tiles_down_, channels_;
    std::vector<Span> spans_;
};

}  // namespace
}  // namespace packed

bool ggml_packed_winograd(const ggml_compute_params * params, ggml_tensor * dst) {
    using namespace packed;
    const ggml_tensor * w = dst->src[0], * x = dst->src[1];
    const auto is = [&](int from, int32_t a) { return dst->op_params[from] == a && dst->op_params[from + 1] == a; };
    if (w->ne[0] != 3 || w->ne[1] != 3 || !is(0, 1) || !is(4, 1) || !ggml_packed_knows_conv_2d(dst)) return false;
    const auto tiles = [&](int m) { return (dst->ne[0] + m - 1) / m * ((dst->ne[1] + m - 1) / m); };
    // with fewer the transforms of the weights take longer than the products that are saved
    if (x->ne[2] < 16 || w->ne[3] < 16 || tiles(2) < 16) return false;
    tiles(4) < 16 ? Winograd<2>(dst).compute(params) : Winograd<4>(dst).compute(params);
    return true;
}

#else

bool ggml_packed_winograd(const ggml_compute_params *, ggml_tensor *) { return false; }

#endif
