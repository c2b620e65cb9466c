// Speed of single operations at the sizes that Stable Diffusion 1.5, its decoder, T5 and FLUX have.
//
//   bench_ops [THREADS] [PART OF A NAME]
//
// Prints GF/s (two operations for each multiplication) of the fastest of several runs, and its share of what this CPU
// does at best with 32-bit floats: independent multiply-adds in registers. Set GGML_PACKED to compare kernels.
#include "ggml-cpu.h"
#include "ggml.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <random>
#include <string>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

extern "C" const char * ggml_packed_kernels(void);

namespace {

using Builder = std::function<ggml_tensor *(ggml_context *)>;

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// One thread is measured by its own CPU time, which leaves out what others do on a busy machine.
double spent(int threads) {
    return threads == 1 ? (double) std::clock() / CLOCKS_PER_SEC : now();
}

// GF/s of one core: enough independent sums that none waits for another
double peak() {
#if defined(__AVX512F__)
    constexpr int sums = 24, lanes = 16;
    __m512 sum[sums], x = _mm512_set1_ps(0.5f);
    for (auto & s : sum) s = x;
    const auto step = [&] { for (auto & s : sum) s = _mm512_fmadd_ps(s, x, x); };
#elif defined(__AVX2__) && defined(__FMA__)
    constexpr int sums = 12, lanes = 8;
    __m256 sum[sums], x = _mm256_set1_ps(0.5f);
    for (auto & s : sum) s = x;
    const auto step = [&] { for (auto & s : sum) s = _mm256_fmadd_ps(s, x, x); };
#else
    constexpr int sums = 16, lanes = 1;
    float sum[sums], x = 0.5f;
    for (auto & s : sum) s = x;
    const auto step = [&] { for (auto & s : sum) s = s * x + x; };
#endif
    constexpr int steps = 4000000;
    double best = 1e9;
    for (int round = 0; round < 5; ++round) {
        const double start = spent(1);
        for (int i = 0; i < steps; ++i) step();
        best = std::min(best, spent(1) - start);
    }
    volatile float kept = 0;
    for (auto & s : sum) kept = kept + ((float *) &s)[0];
    return 2.0 * steps * sums * lanes / best / 1e9;
}

void fill(ggml_tensor * t, float deviation) {
    static std::mt19937 random(5);
    std::normal_distribution<float> normal(0, deviation);
    std::vector<float> x(ggml_nelements(t));
    for (float & value : x) value = normal(random);
    ggml_quantize_chunk(t->type, x.data(), t->data, 0, ggml_nrows(t), t->ne[0], nullptr);
}

ggml_tensor * tensor(ggml_context * c, ggml_type type, int64_t a, int64_t b, int64_t d = 1, int64_t e = 1) {
    ggml_tensor * t = ggml_new_tensor_4d(c, type, a, b, d, e);
    fill(t, 1 / std::sqrt((float) a));
    return t;
}

void measure(const std::string & name, double operations, int threads, double best_possible, const Builder & build) {
    ggml_context * c = ggml_init({ (size_t) 1500 << 20, nullptr, false });
    ggml_cgraph * graph = ggml_new_graph(c);
    ggml_build_forward_expand(graph, build(c));
    ggml_cplan plan = ggml_graph_plan(graph, threads, nullptr);
    std::vector<uint8_t> work(plan.work_size);
    plan.work_data = work.data();
    ggml_graph_compute(graph, &plan);
    double best = 1e9;
    const double until = now() + 0.4;
    for (int round = 0; round < 3 || now() < until; ++round) {
        const double start = spent(threads);
        ggml_graph_compute(graph, &plan);
        best = std::min(best, spent(threads) - start);
    }
    const double speed = operations / best / 1e9;
    std::printf("%-34s %9.3f ms %8.1f G/s  %3.0f %%\n", name.c_str(), best * 1e3, speed, 100 * speed / best_possible);
    std::fflush(stdout);
    ggml_free(c);
}

}  // namespace

int main(int argc, char ** argv) {
    const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
    const std::string wanted = argc > 2 ? argv[2] : "";
    const double most = peak() * threads;
    std::printf("kernels: %s; peak %.1f GF/s of %d threads\n", ggml_packed_kernels(), most, threads);
    const auto with = [&](const std::string & name, double operations, const Builder & build) {
        if (name.find(wanted) != std::string::npos) measure(name, operations, threads, most, build);
    };
    const auto conv = [&](int side, int in, int out, int kernel, int stride = 1) {
        const double place = side / stride;
        with("conv " + std::to_string(kernel) + "x" + std::to_string(kernel) + " /" + std::to_string(stride) + " " +
                 std::to_string(in) + "-" + std::to_string(out) + " at " + std::to_string(side),
             2.0 * place * place * in * out * kernel * kernel, [=](ggml_context * c) {
                 ggml_tensor * w = tensor(c, GGML_TYPE_F16, kernel, kernel, in, out);
                 return ggml_conv_2d_direct(c, w, tensor(c, GGML_TYPE_F32, side, side, in), stride, stride,
                                            kernel / 2, kernel / 2, 1, 1);
             });
    };
    const auto product = [&](ggml_type type, int k, int m, int n) {
        with(std::string("product ") + ggml_type_name(type) + " " + std::to_string(k) + "-" + std::to_string(m) + " x " +
                 std::to_string(n),
             2.0 * k * m * n,
             [=](ggml_context * c) { return ggml_mul_mat(c, tensor(c, type, k, m), tensor(c, GGML_TYPE_F32, k, n)); });
    };
    const auto attention = [&](int head, int queries, int keys, int heads) {
        with("attention " + std::to_string(head) + " x " + std::to_string(heads) + ", " + std::to_string(queries) + " to " +
                 std::to_string(keys),
             4.0 * head * queries * keys * heads, [=](ggml_context * c) {
                 ggml_tensor * o = ggml_flash_attn_ext(c, tensor(c, GGML_TYPE_F32, head, queries, heads),
                     tensor(c, GGML_TYPE_F16, head, keys, heads), tensor(c, GGML_TYPE_F16, head, keys, heads), nullptr,
                     1 / std::sqrt((float) head), 0, 0);
                 ggml_flash_attn_ext_set_prec(o, GGML_PREC_F32);
                 return o;
             });
    };
    conv(64, 320, 320, 3);
    conv(32, 640, 640, 3);
    conv(16, 1280, 1280, 3);
    conv(8, 1280, 1280, 3);
    conv(4, 1280, 1280, 3);
    conv(64, 320, 320, 3, 2);
    conv(64, 4, 320, 3);
    conv(64, 320, 4, 3);
    conv(64, 320, 320, 1);
    conv(16, 1280, 1280, 1);
    conv(256, 128, 128, 3);
    conv(128, 256, 256, 3);
    conv(64, 512, 512, 3);
    conv(128, 64, 64, 3);
    conv(128, 160, 32, 3);
    for (ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_K }) {
        product(type, 320, 320, 4096);
        product(type, 320, 2560, 4096);
        product(type, 1280, 1280, 256);
        product(type, 1280, 10240, 64);
        product(type, 768, 320, 77);
        product(type, 4096, 4096, 256);
        product(type, 3072, 3072, 1024);
    }
    product(GGML_TYPE_Q8_0, 3072, 12288, 512);
    product(GGML_TYPE_Q4_K, 3072, 12288, 512);
    attention(40, 4096, 4096, 8);
    attention(80, 1024, 1024, 8);
    attention(160, 256, 256, 8);
    attention(40, 4096, 77, 8);
    attention(64, 512, 512, 12);
    attention(128, 1280, 1280, 4);
    attention(512, 4096, 4096, 1);
    // bytes, not operations: what is read and written
    const auto moved = [&](const char * name, double values, const std::function<ggml_tensor *(ggml_context *)> & build) {
        with(std::string(name) + " (GB/s)", 4 * values, build);
    };
    moved("bias 320 at 64", 2.0 * 64 * 64 * 320, [](ggml_context * c) {
        return ggml_add(c, tensor(c, GGML_TYPE_F32, 64, 64, 320), tensor(c, GGML_TYPE_F32, 1, 1, 320));
    });
    moved("turns of 64 pairs, 30 heads at 1088", 3.0 * 1088 * 3840, [](ggml_context * c) {
        return ggml_mul(c, tensor(c, GGML_TYPE_F32, 2, 64, 1088, 30), tensor(c, GGML_TYPE_F32, 2, 64, 1088));
    });
    moved("group norm 320 at 64", 2.0 * 64 * 64 * 320, [](ggml_context * c) {
        return ggml_group_norm(c, tensor(c, GGML_TYPE_F32, 64, 64, 320), 32, 1e-6f);
    });
    moved("silu 320 at 64", 2.0 * 64 * 64 * 320, [](ggml_context * c) {
        return ggml_silu(c, tensor(c, GGML_TYPE_F32, 64, 64, 320));
    });
    moved("softmax 1024 x 1024 x 8", 2.0 * 1024 * 1024 * 8, [](ggml_context * c) {
        return ggml_soft_max(c, tensor(c, GGML_TYPE_F32, 1024, 1024, 8));
    });
    moved("upscale 256 at 64", 5.0 * 64 * 64 * 256, [](ggml_context * c) {
        return ggml_upscale(c, tensor(c, GGML_TYPE_F32, 64, 64, 256), 2, GGML_SCALE_MODE_NEAREST);
    });
    moved("concat 320 + 320 at 64", 4.0 * 64 * 64 * 320, [](ggml_context * c) {
        return ggml_concat(c, tensor(c, GGML_TYPE_F32, 64, 64, 320), tensor(c, GGML_TYPE_F32, 64, 64, 320), 2);
    });
    moved("transposed copy 320 at 4096", 2.0 * 4096 * 320, [](ggml_context * c) {
        return ggml_cont(c, ggml_transpose(c, tensor(c, GGML_TYPE_F32, 4096, 320)));
    });
    moved("gelu 1280 at 4096", 2.0 * 4096 * 1280, [](ggml_context * c) {
        return ggml_gelu(c, tensor(c, GGML_TYPE_F32, 1280, 4096));
    });
    moved("norm 320 at 4096", 2.0 * 4096 * 320, [](ggml_context * c) {
        return ggml_norm(c, tensor(c, GGML_TYPE_F32, 320, 4096), 1e-5f);
    });
}
