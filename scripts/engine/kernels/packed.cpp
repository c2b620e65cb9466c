// The way in: which kernels are in use, and which operations are theirs.
#include "packed.h"

#include "packed-amx.h"

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
#if defined(PACKED_AMX)
    static const bool chosen = said("int8") && amx_granted();
    return chosen;
#elif defined(PACKED_INT8)
    static const bool chosen = said("int8");
    return chosen;
#else
    return false;
#endif
}

}  // namespace packed

namespace {

struct Operation {
    ggml_op op;
    bool (*forward)(const ggml_compute_params *, ggml_tensor *);
};

constexpr ggml_op ANY = GGML_OP_COUNT;

// the first that takes it computes it
constexpr Operation operations[] = {
    { GGML_OP_MUL_MAT, ggml_packed_mul_mat },
    { GGML_OP_CONV_2D, ggml_packed_winograd },
    { GGML_OP_CONV_2D, ggml_packed_conv_2d },
    { GGML_OP_FLASH_ATTN_EXT, ggml_packed_flash_attn },
    { ANY, ggml_packed_rows },
};

}  // namespace

bool ggml_packed_forward(const ggml_compute_params * params, ggml_tensor * dst) {
    if (packed::factors() == packed::Factors::off) return false;
    for (const Operation & o : operations)
        if ((o.op == dst->op || o.op == ANY) && o.forward(params, dst)) return true;
    return false;
}

const char * ggml_packed_kernels(void) {
    using namespace packed;
#ifdef PACKED_AVX512
#define PACKED_SET "AVX-512"
#else
#define PACKED_SET "AVX2"
#endif
#if defined(PACKED_AMX)
#define PACKED_BYTES "+AMX int8"
#elif defined(PACKED_VNNI)
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
