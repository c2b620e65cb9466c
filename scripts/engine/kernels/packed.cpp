// The way in: which kernels are in use, and which operations are theirs.
#include "packed.h"

#include "packed-simd.h"

#include <cstdlib>
#include <cstring>

#ifdef PACKED

namespace packed {
namespace {

Factors choose() {
    const char * const said = std::getenv("GGML_PACKED");
    const auto is = [&](const char * word) { return said && std::strcmp(said, word) == 0; };
    if (is("off")) return Factors::off;
#ifdef PACKED_BF16
    const Factors best = Factors::bf16;
#else
    const Factors best = Factors::f32;
#endif
    return is("f32") ? Factors::f32 : best;
}

}  // namespace

Factors factors() {
    static const Factors chosen = choose();
    return chosen;
}

}  // namespace packed

bool ggml_packed_forward(const ggml_compute_params * params, ggml_tensor * dst) {
    if (packed::factors() == packed::Factors::off) return false;
    switch (dst->op) {
        case GGML_OP_MUL_MAT: return ggml_packed_mul_mat(params, dst);
        case GGML_OP_CONV_2D: return ggml_packed_winograd(params, dst) || ggml_packed_conv_2d(params, dst);
        case GGML_OP_FLASH_ATTN_EXT: return ggml_packed_flash_attn(params, dst);
        default: return ggml_packed_rows(params, dst);
    }
}

const char * ggml_packed_kernels(void) {
    using namespace packed;
#ifdef PACKED_AVX512
#define PACKED_SET "AVX-512"
#else
#define PACKED_SET "AVX2"
#endif
    switch (factors()) {
        case Factors::f32: return PACKED_SET " f32";
        case Factors::bf16: return PACKED_SET " bf16";
        case Factors::off: break;
    }
    return "";
}

#else

bool ggml_packed_forward(const ggml_compute_params *, ggml_tensor *) { return false; }
const char * ggml_packed_kernels(void) { return ""; }

#endif
