// Pass 1 of lora_adamw: the norm of the gradient, and what follows from it for the update.
//
//   norm = √Σ g²      factor = min(1, max_norm / (norm + 1e-6))
//
// Each chunk's sum has its own place, and the last block adds the places up in a fixed order: the
// norm does not depend on the number of blocks or on which ends first.
#include "lora_adamw.h"

using namespace liftcore;

struct Settings {
    double max_norm, beta1, beta2, weight_decay;
};

// The sum over the block, in thread 0.
template <typename T>
__device__ T block_sum(T value, T* shared) {
    shared[threadIdx.x] = value;
    __syncthreads();
#pragma unroll
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    return shared[0];
}

template <typename G>
__device__ float chunk_sum(const G* grad, int64_t begin, int64_t end) {
    float sum = 0.0f;
    int64_t scalar = begin;
    if (aligned(grad)) {
        scalar = end - (end - begin) % VECTOR;
        for (int64_t i = begin + threadIdx.x * VECTOR; i < scalar; i += THREADS * VECTOR) {
            float g[VECTOR];
            load(grad + i, g);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) sum += g[j] * g[j];
        }
    }
    for (int64_t i = scalar + threadIdx.x; i < end; i += THREADS) {
        const float g = to_float(grad[i]);
        sum += g * g;
    }
    return sum;
}

__device__ void conclude(double sum, Scratch* scratch, const float* rates, int64_t rate_count,
                         int64_t* step, float* norm, int32_t* status, const Settings& s) {
    const float length = static_cast<float>(sqrt(sum));
    *norm = length;
    scratch->skip = !isfinite(length);
    status[0] = scratch->skip;
    status[1] += scratch->skip;
    if (scratch->skip) return;
    const int64_t done = *step;
    const double rate = rates[done < rate_count ? done : rate_count - 1];
    const double t = static_cast<double>(done + 1);
    scratch->factor = fminf(1.0f, static_cast<float>(s.max_norm) / (length + 1e-6f));
    scratch->keep = static_cast<float>(1.0 - rate * s.weight_decay);
    scratch->step_size = static_cast<float>(rate / (1.0 - pow(s.beta1, t)));
    scratch->root = static_cast<float>(1.0 / sqrt(1.0 - pow(s.beta2, t)));
    *step = done + 1;
}

template <typename G>
__global__ void __launch_bounds__(THREADS) lora_norm_kernel(
    const void* __restrict__ grad, int64_t numel, int64_t chunk_count, Scratch* scratch,
    const float* __restrict__ rates, int64_t rate_count, int64_t* step, float* norm,
    int32_t* status, Settings settings) {
    __shared__ double shared[THREADS];
    __shared__ bool last;
    float* partial = reinterpret_cast<float*>(scratch + 1);
    for (int64_t c = blockIdx.x; c < chunk_count; c += gridDim.x) {
        const int64_t begin = c * CHUNK, end = min(begin + CHUNK, numel);
        const float mine = chunk_sum(static_cast<const G*>(grad), begin, end);
        const float sum = block_sum(mine, reinterpret_cast<float*>(shared));
        if (threadIdx.x == 0) partial[c] = sum;
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicInc(&scratch->ticket, gridDim.x - 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (!last) return;
    double sum = 0.0;
    for (int64_t c = threadIdx.x; c < chunk_count; c += THREADS) sum += __ldcg(partial + c);
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) conclude(sum, scratch, rates, rate_count, step, norm, status, settings);
}

// By LiftcoreType of the gradient.
static constexpr decltype(&lora_norm_kernel<float>) KERNELS[] = {
    lora_norm_kernel<float>, lora_norm_kernel<__nv_bfloat16>, lora_norm_kernel<__half>};

cudaError_t liftcore::load_lora_norm() {
    cudaError_t error = cudaSuccess;
    cudaFuncAttributes attributes;
    for (auto kernel : KERNELS)
        if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
    return error;
}

int liftcore_lora_norm(
    const void* grad, int64_t numel, int grad_type, float* scratch, const float* rates,
    int64_t rate_count, int64_t* step, float* norm, int32_t* status, double max_norm, double beta1,
    double beta2, double weight_decay, cudaStream_t stream) {
    int device, processors;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (error != cudaSuccess) return error;
    const int64_t chunk_count = chunks(numel), most = 8 * static_cast<int64_t>(processors);
    const unsigned blocks = static_cast<unsigned>(chunk_count < most ? chunk_count : most);
    KERNELS[grad_type]<<<blocks, THREADS, 0, stream>>>(
        grad, numel, chunk_count, reinterpret_cast<Scratch*>(scratch), rates, rate_count, step,
        norm, status, {max_norm, beta1, beta2, weight_decay});
    return cudaGetLastError();
}
