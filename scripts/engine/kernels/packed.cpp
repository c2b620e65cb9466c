// The way in: which kernels are in use, and which operations are theirs.
#include "packed.h"

#include "packed-simd.h"

#include <cstdlib>
#include <cstring>

#ifdef PACKED

namespace packed {
namespace {

bool said(const char * word) {
    const char * const kernels = std::getenv("GGML_PACKED");
    return kernels && std::strcmp(kernels, word) == 0;
}

Factors choose() {
    if (said("off")) return Factors::off;
#ifdef PACKED_BF16
    const Factors best = Factors::bf16;
#else
    const Factors best = Factors::f32;
#endif
    return said("f32") ? Factors::f32 : best;
}

}  // namespace

Factors factors() {
    static const Factors chosen = choose();
    return chosen;
}

bool bytes() {
#ifdef PACKED_INT8
    static const bool chosen = said("int8");
    return chosen;
#else
    return false;
#endif
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
#ifdef PACKED_VNNI
#define PACKED_BYTES "+VNNI int8"
#else
#define PACKED_BYTES "+int8"
#endif
    switch (factors()) {
        case Factors::f32: return bytes() ? PACKED_SET " f32" PACKED_BYTES : PACKED_SET " f32";
        case Factors::bf16: return bytes() ? PACKED_SET " bf16" PACKED_BYTES : PACKED_SET " bf16";
        case Factors::off: break;
    }
    return "";
}

#else

bool ggml_packed_forward(const ggml_compute_params *, ggml_tensor *) { return false; }
const char * ggml_packed_kernels(void) { return ""; }

#endif
