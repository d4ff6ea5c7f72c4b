// Pass 2 of lora_adamw: AdamW on the fp32 masters, the shadow, and the gradient back to zero.
//
//   g ← factor · g          m ← m + (1 − β1)(g − m)          v ← β2 v + (1 − β2) g²
//   p ← (1 − rate · decay) p − step_size · m / (√v · root + ε)
//   shadow ← scale · p      grad ← 0
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

template <typename S>
__device__ __forceinline__ void write_shadow(const Entry& entry, int64_t i, float p) {
    // A tensor has fewer than 2³¹ elements: the division is one of 32 bits.
    const uint32_t row = static_cast<uint32_t>(i) / static_cast<uint32_t>(entry.cols);
    const int64_t col = i - row * entry.cols;
    static_cast<S*>(entry.shadow)[row * entry.stride + col] =
        from_float<S>(p * static_cast<float>(entry.scale));
}

template <typename S>
__device__ __forceinline__ void write_shadow(const Entry& entry, int64_t i, float (&p)[VECTOR]) {
    const float scale = static_cast<float>(entry.scale);
#pragma unroll
    for (int j = 0; j < VECTOR; ++j) p[j] *= scale;
    const uint32_t row = static_cast<uint32_t>(i) / static_cast<uint32_t>(entry.cols);
    const int64_t col = i - row * entry.cols;
    store(static_cast<S*>(entry.shadow) + row * entry.stride + col, p);
}

// A block takes a chunk.
template <typename G, typename S>
__global__ void __launch_bounds__(THREADS) lora_update_kernel(
    const Entry* __restrict__ entries, const int32_t* __restrict__ chunks,
    const Scratch* __restrict__ scratch, Betas beta) {
    const Scratch s = *scratch;
    const Entry entry = entries[chunks[blockIdx.x]];
    const int64_t begin = (blockIdx.x - entry.first) * CHUNK;
    const int64_t end = min(begin + CHUNK, entry.numel);
    G* grad = static_cast<G*>(entry.grad);
    const bool wide = aligned(entry.master) && aligned(entry.exp_avg) &&
                      aligned(entry.exp_avg_sq) && aligned(grad);
    // Either one row, or rows of whole vectors that start at 16 bytes.
    const bool rows = entry.cols % VECTOR == 0 && entry.stride * sizeof(S) % 16 == 0;
    const bool wide_shadow = aligned(entry.shadow) && (entry.cols == entry.numel || rows);
    int64_t scalar = begin;
    if (wide) {
        scalar = end - (end - begin) % VECTOR;
        const float zero[VECTOR] = {};
        for (int64_t i = begin + threadIdx.x * VECTOR; i < scalar; i += THREADS * VECTOR) {
            if (!s.skip) {
                float p[VECTOR], m[VECTOR], v[VECTOR], g[VECTOR];
                load(entry.master + i, p);
                load(entry.exp_avg + i, m);
                load(entry.exp_avg_sq + i, v);
                load(grad + i, g);
#pragma unroll
                for (int j = 0; j < VECTOR; ++j) adamw(p[j], m[j], v[j], g[j], s, beta);
                store(entry.master + i, p);
                store(entry.exp_avg + i, m);
                store(entry.exp_avg_sq + i, v);
                if (wide_shadow) {
                    write_shadow<S>(entry, i, p);
                } else {
#pragma unroll
                    for (int j = 0; j < VECTOR; ++j) write_shadow<S>(entry, i + j, p[j]);
                }
            }
            store(grad + i, zero);
        }
    }
    for (int64_t i = scalar + threadIdx.x; i < end; i += THREADS) {
        if (!s.skip) {
            adamw(entry.master[i], entry.exp_avg[i], entry.exp_avg_sq[i], to_float(grad[i]), s, beta);
            write_shadow<S>(entry, i, entry.master[i]);
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
    const void* entries, const int32_t* chunks, int64_t chunk_count, int grad_type,
    int shadow_type, const float* scratch, double beta1, double beta2, double eps,
    cudaStream_t stream) {
    const Betas beta = {static_cast<float>(beta1), static_cast<float>(1.0 - beta1),
                        static_cast<float>(beta2), static_cast<float>(1.0 - beta2),
                        static_cast<float>(eps)};
    const auto kernel = KERNELS[shadow_type][grad_type == LIFTCORE_FP32];
    kernel<<<static_cast<unsigned>(chunk_count), THREADS, 0, stream>>>(
        static_cast<const Entry*>(entries), chunks, reinterpret_cast<const Scratch*>(scratch), beta);
    return cudaGetLastError();
}
