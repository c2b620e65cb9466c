// Matrix products: weights of any type times activations.
#include "packed.h"

#include "packed-int8.h"

#ifdef PACKED

namespace packed {
namespace {

template <class Kind>
void product(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * w = dst->src[0], * x = dst->src[1];
    const int64_t k = w->ne[0], unit = ggml_blck_size(w->type);
    share_blocks(params, dst->ne[2] * dst->ne[3], w->ne[1], x->ne[1],
        [&](int64_t batch, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
            const Scratch & t = Scratch::of_this_thread();
            const int64_t b2 = batch % dst->ne[2], b3 = batch / dst->ne[2];
            const int64_t w2 = b2 / (x->ne[2] / w->ne[2]), w3 = b3 / (x->ne[3] / w->ne[3]);
            const Rows v = { w->type, (const char *) w->data + w2 * w->nb[2] + w3 * w->nb[3], w->nb[1] };
            const Rows s = { x->type, (const char *) x->data + b2 * x->nb[2] + b3 * x->nb[3], x->nb[1] };
            float * c = (float *) ((char *) dst->data + b2 * dst->nb[2] + b3 * dst->nb[3]);
            const auto pack = [&](int64_t i, int n, int64_t k0, int64_t kc, float * out) {
                for (int r = 0; r < n; r += PV) {
                    const int here = std::min(n - r, PV);
                    Kind::panel(v, i + r, here, width_of(here), k0, kc, t, out + r * KW);
                }
            };
            multiply<Kind>(pack, s, c, dst->nb[1] / sizeof(float), m0, m1, n0, n1, k, std::max<int64_t>(unit, 16), t);
        });
}

using Product = void (*)(const ggml_compute_params *, ggml_tensor *);

Product product_for(ggml_type type) {
#ifdef PACKED_INT8
    if (bytes()) {
        switch (type) {
#ifdef PACKED_VNNI
            case GGML_TYPE_Q8_0: return product<OfBytes<8, 255, 128>>;
#endif
            case GGML_TYPE_Q4_0: return product<OfBytes<8, 15, 8>>;
            case GGML_TYPE_Q4_1:
            case GGML_TYPE_Q4_K: return product<OfBytes<8, 15, 0>>;
            case GGML_TYPE_Q5_0: return product<OfBytes<8, 31, 16>>;
            case GGML_TYPE_Q5_1:
            case GGML_TYPE_Q5_K: return product<OfBytes<8, 31, 0>>;
            case GGML_TYPE_Q6_K: return product<OfBytes<4, 63, 32>>;
            default: break;
        }
    }
#endif
    return factors() == Factors::bf16 ? product<OfFloats<true>> : product<OfFloats<false>>;
}

}  // namespace
}  // namespace packed

bool ggml_packed_mul_mat(const ggml_compute_params * params, ggml_tensor * dst) {
    using namespace packed;
    const ggml_tensor * w = dst->src[0], * x = dst->src[1];
    // below this, packing costs more than it brings
    const bool large = x->ne[1] >= 8 && w->ne[1] >= 8 && w->ne[0] >= 16;
    if (!large || !Rows::readable(w) || !Rows::readable(x)) return false;
    if (KW % ggml_blck_size(w->type) != 0 || dst->type != GGML_TYPE_F32) return false;
    if (x->type != GGML_TYPE_F32 && x->type != GGML_TYPE_F16) return false;
    product_for(w->type)(params, dst);
    return true;
}

#else

bool ggml_packed_mul_mat(const ggml_compute_params *, ggml_tensor *) { return false; }

#endif
