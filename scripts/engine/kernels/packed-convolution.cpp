// Convolutions without im2col: the pixels under the kernel are gathered panel by panel, just before they are used.
#include "packed.h"

#include "packed-blocks.h"

#include <type_traits>
#include <vector>

#ifdef PACKED

namespace packed {
namespace {

// The V of a convolution: for each pixel of the result, the values under the kernel, k = (channel, ky, kx).
class Pixels {
  public:
    Pixels(const ggml_tensor * dst, int64_t picture) {
        const ggml_tensor * w = dst->src[0], * x = dst->src[1];
        data_ = (const float *) ((const char *) x->data + picture * x->nb[3]);
        width_ = x->ne[0];
        height_ = x->ne[1];
        plane_ = x->nb[2] / sizeof(float);
        out_width_ = dst->ne[0];
        kernel_width_ = (int) w->ne[0];
        taps_ = (int) (w->ne[0] * w->ne[1]);
        stride_x_ = dst->op_params[0];
        stride_y_ = dst->op_params[1];
        pad_x_ = dst->op_params[2];
        pad_y_ = dst->op_params[3];
        step_x_ = dst->op_params[4];
        step_y_ = dst->op_params[5];
    }

    // n pixels from p0 on as panels for `multiply`
    template <bool BF>
    void pack(int64_t p0, int n, int64_t k0, int64_t kc, float * out) const {
        if (stride_x_ == 1 && taps_ <= 25) {
            const Runs runs(*this, p0, n);
            fill<BF>(runs, n, k0, kc, out);
        } else {  // a panel at a time, as the table of offsets is large
            for (int i = 0; i < n; i += PV) {
                const int here = std::min(n - i, PV);
                const Offsets offsets(*this, p0 + i, here);
                fill<BF>(offsets, here, k0, kc, out + i * KW);
            }
        }
    }

  private:
    const float * data_;  // of one picture
    int64_t width_, height_, plane_, out_width_;
    int kernel_width_, taps_, stride_x_, stride_y_, pad_x_, pad_y_, step_x_, step_y_;

    // Where the values of a tap lie within a plane, for vectors of pixels that are neighbours in the source, too: a run
    // for each row of the result that a vector has a part of.
    class Runs {
      public:
        Runs(const Pixels & p, int64_t p0, int n) : vectors_((n + VL - 1) / VL) {
            runs_.clear();
            begin_.clear();
            whole_.clear();
            for (int tap = 0; tap < p.taps_; ++tap) {
                bool whole = true;
                for (int i = 0; i < n; i += VL) {
                    const size_t before = runs_.size();
                    begin_.push_back((int) before);
                    add(p, tap, p0 + i, std::min(n - i, VL));
                    whole = whole && runs_.size() == before + 1 && runs_.back().whole;
                }
                whole_.push_back(whole);
            }
            begin_.push_back((int) runs_.size());
        }

        // whether each vector of a tap is one run, as in the middle of large pictures
        bool whole(int tap) const { return whole_[tap]; }

        vec whole_values(const float * plane, int tap, int vector) const {
            return load(plane + runs_[begin_[tap * vectors_] + vector].offset);
        }

        vec values(const float * plane, int tap, int vector) const {
            const int * const at = begin_.data() + tap * vectors_ + vector;
            const Run * run = runs_.data() + at[0], * const end = runs_.data() + at[1];
            if (run == end) return zero();
            vec x = run->whole ? load(plane + run->offset) : load(plane + run->offset, run->which);
            while (++run < end) x = either(x, load(plane + run->offset, run->which));
            return x;
        }

      private:
        struct Run {
            int64_t offset;  // where the first lane of the whole vector would be
            lanes which;
            bool whole;
        };

        void add(const Pixels & p, int tap, int64_t p0, int n) {
            const int ky = tap / p.kernel_width_, kx = tap % p.kernel_width_;
            for (int i = 0; i < n;) {
                const int64_t oy = (p0 + i) / p.out_width_, ox = (p0 + i) % p.out_width_;
                const int64_t y = oy * p.stride_y_ + ky * p.step_y_ - p.pad_y_, x = ox + kx * p.step_x_ - p.pad_x_;
                const int length = (int) std::min<int64_t>(n - i, p.out_width_ - ox);
                const int from = (int) std::min<int64_t>(length, std::max<int64_t>(0, -x));
                const int to = (int) std::max<int64_t>(from, std::min<int64_t>(length, p.width_ - x));
                if (y >= 0 && y < p.height_ && from < to)
                    runs_.push_back({ y * p.width_ + x - i, lanes_between(i + from, i + to), to - from == VL });
                i += length;
            }
        }

        int vectors_;
        static thread_local std::vector<Run> runs_;  // kept for their memory
        static thread_local std::vector<int> begin_;
        static thread_local std::vector<char> whole_;
    };

    // The same for strides: an offset for each lane.
    class Offsets {
      public:
        Offsets(const Pixels & p, int64_t p0, int n) : vectors_((n + VL - 1) / VL) {
            offsets_.assign((size_t) p.taps_ * vectors_ * VL, -1);
            for (int tap = 0; tap < p.taps_; ++tap) {
                const int ky = tap / p.kernel_width_, kx = tap % p.kernel_width_;
                int32_t * at = offsets_.data() + (size_t) tap * vectors_ * VL;
                int64_t oy = p0 / p.out_width_, ox = p0 % p.out_width_;
                for (int i = 0; i < n; ++i) {
                    const int64_t y = oy * p.stride_y_ + ky * p.step_y_ - p.pad_y_;
                    const int64_t x = ox * p.stride_x_ + kx * p.step_x_ - p.pad_x_;
                    if (y >= 0 && y < p.height_ && x >= 0 && x < p.width_) at[i] = (int32_t) (y * p.width_ + x);
                    if (++ox == p.out_width_) {
                        ox = 0;
                        ++oy;
                    }
                }
            }
        }

        bool whole(int) const { return false; }
        vec whole_values(const float *, int, int) const { return zero(); }

        vec values(const float * plane, int tap, int vector) const {
            const int32_t * at = offsets_.data() + ((size_t) tap * vectors_ + vector) * VL;
            return gather(plane, at);
        }

      private:
        int vectors_;
        static thread_local std::vector<int32_t> offsets_;
    };

    // The tables' values for each k, into panels. BF takes two k at a time.
    template <bool BF, class Table>
    void fill(const Table & table, int n, int64_t k0, int64_t kc, float * out) const {
        const int vectors = (n + VL - 1) / VL;
        const float * plane = data_ + k0 / taps_ * plane_;
        int tap = (int) (k0 % taps_);
        const auto next = [&] {
            if (++tap == taps_) {
                tap = 0;
                plane += plane_;
            }
        };
        for (int64_t k = 0, word = 0; k < kc; k += BF ? 2 : 1, ++word) {
            const float * const plane0 = plane;
            const int tap0 = tap;
            next();
            const bool second = BF && k + 1 < kc;
            const auto panels = [&](const auto & values, const auto & more) {
                for (int v = 0; v < vectors; ++v) {
                    vec x = values(v);
                    if (BF) x = pairs_of(x, second ? more(v) : zero());
                    const int width = v % 2 == 0 && v + 1 == vectors ? VL : PV;  // the last panel may be of one vector
                    store(out + v / 2 * PV * KW + word * width + v % 2 * VL, x);
                }
            };
            const auto more = [&](int v) { return table.values(plane, tap, v); };
            if (table.whole(tap0)) panels([&](int v) { return table.whole_values(plane0, tap0, v); }, more);
            else panels([&](int v) { return table.values(plane0, tap0, v); }, more);
            if (second) next();
        }
    }
};

thread_local std::vector<Pixels::Runs::Run> Pixels::Runs::runs_;
thread_local std::vector<int> Pixels::Runs::begin_;
thread_local std::vector<char> Pixels::Runs::whole_;
thread_local std::vector<int32_t> Pixels::Offsets::offsets_;

template <bool BF>
void convolution(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * w = dst->src[0];
    const int64_t k = w->ne[0] * w->ne[1] * w->ne[2], m = dst->ne[0] * dst->ne[1];
    const Rows s = { w->type, (const char *) w->data, (size_t) k * ggml_type_size(w->type) };
    share_blocks(params, dst->ne[3], m, w->ne[3], [&](int64_t picture, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
        const Pixels pixels(dst, picture);
        const auto pack = [&](int64_t i, int n, int64_t k0, int64_t kc, float * out) { pixels.pack<BF>(i, n, k0, kc, out); };
        float * c = (float *) ((char *) dst->data + picture * dst->nb[3]);
        multiply<OfFloats<BF>>(pack, s, c, m, m0, m1, n0, n1, k, 16, Scratch::of_this_thread());
    });
}

}  // namespace
}  // namespace packed

bool ggml_packed_knows_conv_2d(const ggml_tensor * dst) {
    const ggml_tensor * w = dst->src[0], * x = dst->src[1];
    if (x->type != GGML_TYPE_F32 || dst->type != GGML_TYPE_F32) return false;
    if (w->type != GGML_TYPE_F32 && w->type != GGML_TYPE_F16) return false;
    if (!ggml_is_contiguous(w) || !ggml_is_contiguous(dst)) return false;
    return x->nb[0] == sizeof(float) && x->nb[1] == x->ne[0] * sizeof(float) && x->ne[0] * x->ne[1] <= INT32_MAX;
}

bool ggml_packed_conv_2d(const ggml_compute_params * params, ggml_tensor * dst) {
    using namespace packed;
    if (!ggml_packed_knows_conv_2d(dst)) return false;
    factors() == Factors::bf16 ? convolution<true>(params, dst) : convolution<false>(params, dst);
    return true;
}

#else

bool ggml_packed_conv_2d(const ggml_compute_params *, ggml_tensor *) { return false; }

#endif
