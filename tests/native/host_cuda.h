// Runs CUDA kernels on a CPU, one block at a time: a thread is a fiber that runs until
// __syncthreads() or its end. Enough for the kernels of this library, and only for tests.
#pragma once

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdint.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <vector>

#undef __shared__
#undef __launch_bounds__
#undef __forceinline__
#define __shared__ static
#define __launch_bounds__(...)
#define __forceinline__ inline

using std::max;
using std::min;

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace host {

constexpr size_t STACK = 64 << 10;
inline ucontext_t scheduler;
inline std::vector<ucontext_t> fibers;
inline std::vector<char> stacks, done;
inline unsigned current;
inline std::function<void()> body;

inline void enter() {
    body();
    done[current] = 1;
    swapcontext(&fibers[current], &scheduler);
}

inline void run_block(unsigned threads) {
    fibers.resize(threads), stacks.resize(threads * STACK), done.assign(threads, 0);
    for (unsigned i = 0; i < threads; ++i) {
        getcontext(&fibers[i]);
        fibers[i].uc_stack.ss_sp = stacks.data() + i * STACK;
        fibers[i].uc_stack.ss_size = STACK;
        fibers[i].uc_link = &scheduler;
        makecontext(&fibers[i], enter, 0);
    }
    while (std::find(done.begin(), done.end(), 0) != done.end())
        for (current = 0; current < threads; ++current) {
            threadIdx = {current, 0, 0};
            if (!done[current]) swapcontext(&scheduler, &fibers[current]);
        }
}

template <typename... Parameters>
struct Launch {
    void (*kernel)(Parameters...);
    dim3 grid, block;
    void operator()(Parameters... arguments) const {
        body = [=, this] { kernel(arguments...); };
        gridDim = grid, blockDim = block;
        // From the last block to the first: no kernel may count on an order.
        for (unsigned y = grid.y; y-- > 0;)
            for (unsigned x = grid.x; x-- > 0;) {
                blockIdx = {x, y, 0};
                run_block(block.x);
            }
    }
};

template <typename... Parameters>
Launch<Parameters...> launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, int,
                             cudaStream_t) {
    return {kernel, grid, block};
}

}  // namespace host

inline void __syncthreads() {
    const unsigned me = host::current;
    swapcontext(&host::fibers[me], &host::scheduler);
}
inline void __threadfence() {}
inline int atomicAdd(int* at, int value) { return (*at += value) - value; }
inline unsigned atomicInc(unsigned* at, unsigned most) {
    const unsigned old = *at;
    *at = old >= most ? 0 : old + 1;
    return old;
}
template <typename T>
T __ldcg(const T* at) { return *at; }
template <typename T>
void __stcg(T* at, T value) { *at = value; }

extern "C" inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
extern "C" inline const char* cudaGetErrorString(cudaError_t) { return "on the host"; }
extern "C" inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
extern "C" inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    return *value = 1, cudaSuccess;  // few blocks, so that each takes several chunks
}
extern "C" inline cudaError_t cudaGetLastError() { return cudaSuccess; }
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
    return cudaSuccess;
}
