#pragma once
// Matrix products, convolutions and attention from packed blocks, and what lies between them, for x86-64 with AVX2 or
// AVX-512.
//
// Each function computes this thread's part of dst and returns true. Where the types, shapes or strides are not ones it
// knows, or the kernels are off, it returns false before anything is written, on every thread alike, and the caller goes
// on with ggml's own code. Results do not depend on the number of threads.
//
// GGML_PACKED in the environment, read at the first use, chooses the kernels: "off", "f32" (sums and factors in 32-bit
// floats), "bf16" (factors in BF16; f32 where the build lacks AVX512-BF16) or "int8" (quantised weights and what they are
// multiplied with as bytes, without VNNI all but Q8_0; the rest as "bf16"). Unset, it is "bf16".
#include "ggml.h"
#include "ggml-cpu-impl.h"

#ifdef __cplusplus
extern "C" {
#endif

// What ggml asks for each operation; it leaves it to one of those below.
bool ggml_packed_forward(const struct ggml_compute_params * params, struct ggml_tensor * dst);

bool ggml_packed_mul_mat(const struct ggml_compute_params * params, struct ggml_tensor * dst);
bool ggml_packed_conv_2d(const struct ggml_compute_params * params, struct ggml_tensor * dst);
bool ggml_packed_winograd(const struct ggml_compute_params * params, struct ggml_tensor * dst);
bool ggml_packed_flash_attn(const struct ggml_compute_params * params, struct ggml_tensor * dst);
bool ggml_packed_rows(const struct ggml_compute_params * params, struct ggml_tensor * dst);
bool ggml_packed_knows_conv_2d(const struct ggml_tensor * dst);  // whether it takes a convolution's types and strides

// The kernels in use, as "AVX2 f32" or "AVX-512 bf16+VNNI int8"; "" where all work is left to ggml's own.
GGML_API const char * ggml_packed_kernels(void);

#ifdef __cplusplus
}
#endif
