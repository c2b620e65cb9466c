#pragma once
// Packed matrix products and convolutions for x86-64 (AVX2, AVX-512, AVX512-BF16).
// Each function computes its part of dst and returns true, or returns false at once, on every thread alike, where
// the shapes, types or strides are not its own; the caller then goes on with ggml's code.
#include "ggml.h"
#include "ggml-cpu-impl.h"
#ifdef __cplusplus
extern "C" {
#endif
bool ggml_packed_mul_mat(const struct ggml_compute_params * params, struct ggml_tensor * dst);
bool ggml_packed_conv_2d(const struct ggml_compute_params * params, struct ggml_tensor * dst);
bool ggml_packed_flash_attn(const struct ggml_compute_params * params, struct ggml_tensor * dst);
// The kernels in use, as "AVX2 f32"; "" where ggml's own do the work.
GGML_API const char * ggml_packed_kernels(void);
#ifdef __cplusplus
}
#endif
