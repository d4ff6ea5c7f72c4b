// Pass 2 of lora_adamw: AdamW on the fp32 masters, the shadow, and the gradient back to zero.
//
//   g ← factor · g          m ← m + (1 − β1)(g − m)          v ← β2 v + (1 − β2) g²
//   p ← (1 − rate · decay) p − step_size · m / (√v · root + ε)
//   shadow ← p              grad ← 0
//
// Pass 1 has left factor, step_size = rate / (1 − β1ᵗ) and root = 1 / √(1 − β2ᵗ). After a norm
// that is not finite only the gradient is zeroed.
#include "lora_adamw.h"

using namespace liftcore;

struct Betas {
    float one, rest_one, two, rest_two, eps;  // β1, 1 − β1, β2, 1 − β2, ε
};

__device__ __forceinline__ void adamw(float& p, float& m, float& v, float g, const Scratch& s,
                                      const Betas& beta) {
    g *= s.factor;
    m += beta.rest_one * (g - m);
    v = beta.two * v + beta.rest_two * g * g;
    p = s.keep * p - s.step_size * m / (sqrtf(v) * s.root + beta.eps);
}

// A block takes a chunk. Four blocks a processor: half of its threads, and 64 registers for each.
template <typename G, typename S>
__global__ void __launch_bounds__(THREADS, 4) lora_update_kernel(
    float* __restrict__ master, float* __restrict__ exp_avg, float* __restrict__ exp_avg_sq,
    void* __restrict__ grad_of_type, void* shadow_of_type, int64_t numel,
    const Scratch* __restrict__ scratch, Betas beta) {
    const Scratch s = *scratch;
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * CHUNK;
    const int end = static_cast<int>(min(numel - begin, static_cast<int64_t>(CHUNK)));
    master += begin, exp_avg += begin, exp_avg_sq += begin;
    G* grad = static_cast<G*>(grad_of_type) + begin;
    S* shadow = static_cast<S*>(shadow_of_type) + begin;
    const bool wide = aligned(master) && aligned(exp_avg) && aligned(exp_avg_sq) &&
                      aligned(grad) && aligned(shadow);
    int scalar = 0;
    if (wide) {
        scalar = end - end % VECTOR;
        const float zero[VECTOR] = {};
        for (int i = threadIdx.x * VECTOR; i < scalar; i += THREADS * VECTOR) {
            if (!s.skip) {
                float p[VECTOR], m[VECTOR], v[VECTOR], g[VECTOR];
                load(master + i, p);
                load(exp_avg + i, m);
                load(exp_avg_sq + i, v);
                load(grad + i, g);
#pragma unroll
                for (int j = 0; j < VECTOR; ++j) adamw(p[j], m[j], v[j], g[j], s, beta);
                store(master + i, p);
                store(exp_avg + i, m);
                store(exp_avg_sq + i, v);
                store(shadow + i, p);
            }
            store(grad + i, zero);
        }
    }
    for (int i = scalar + threadIdx.x; i < end; i += THREADS) {
        if (!s.skip) {
            adamw(master[i], exp_avg[i], exp_avg_sq[i], to_float(grad[i]), s, beta);
            shadow[i] = from_float<S>(master[i]);
        }
        grad[i] = from_float<G>(0.0f);
    }
}

// By LiftcoreType of the shadow, and whether the gradient is fp32 or of the shadow's type.
static constexpr decltype(&lora_update_kernel<float, float>) KERNELS[][2] = {
    {lora_update_kernel<float, float>, lora_update_kernel<float, float>},
    {lora_update_kernel<__nv_bfloat16, __nv_bfloat16>, lora_update_kernel<float, __nv_bfloat16>},
    {lora_update_kernel<__half, __half>, lora_update_kernel<float, __half>}};

cudaError_t liftcore::load_lora_update() {
    cudaError_t error = cudaSuccess;
    cudaFuncAttributes attributes;
    for (auto& row : KERNELS)
        for (auto kernel : row)
            if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
    return error;
}

int liftcore_lora_update(
    float* master, float* exp_avg, float* exp_avg_sq, void* grad, void* shadow, int64_t numel,
    int grad_type, int shadow_type, const float* scratch, double beta1, double beta2, double eps,
    cudaStream_t stream) {
    const Betas beta = {static_cast<float>(beta1), static_cast<float>(1.0 - beta1),
                        static_cast<float>(beta2), static_cast<float>(1.0 - beta2),
                        static_cast<float>(eps)};
    const auto kernel = KERNELS[shadow_type][grad_type == LIFTCORE_FP32];
    kernel<<<static_cast<unsigned>(chunks(numel)), THREADS, 0, stream>>>(
        master, exp_avg, exp_avg_sq, grad, shadow, numel,
        reinterpret_cast<const Scratch*>(scratch), beta);
    return cudaGetLastError();
}
