#pragma once
// e^x of each lane of a vector, for softmax and activations.
#include "packed-simd.h"
#include "vec.h"

#ifdef PACKED

namespace packed {

// ggml has this for the widest vectors of the build alone
inline vec exponential(vec x) {
#if defined(PACKED_AVX512) || !defined(__AVX512F__)
    return ggml_v_expf(x);
#else
    return _mm512_castps512_ps256(ggml_v_expf(_mm512_zextps256_ps512(x)));
#endif
}

}  // namespace packed
#endif
