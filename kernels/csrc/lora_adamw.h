// What the two passes of lora_adamw share: the scratch buffer and 16-byte accesses.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "library.h"

namespace liftcore {

constexpr int THREADS = 256;
constexpr int CHUNK = 8192;  // elements that a block takes at a time
constexpr int VECTOR = 8;    // elements of a thread at a time: 16 bytes in bf16, twice 16 in fp32

// The head of the scratch buffer; a partial sum for each chunk follows.
struct Scratch {
    float factor;     // of the gradient: the clip
    float keep;       // 1 − rate · weight decay
    float step_size;  // rate / (1 − β1ᵗ)
    float root;       // 1 / √(1 − β2ᵗ)
    int skip;         // the norm is not finite
    unsigned ticket;
    float unused[2];
};

inline int64_t chunks(int64_t numel) { return (numel + CHUNK - 1) / CHUNK; }

__device__ __forceinline__ bool aligned(const void* p) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }

// VECTOR elements as 16-byte words, past the L1 cache: none of them is read twice.
template <typename T>
struct Words {
    static constexpr int COUNT = VECTOR * sizeof(T) / 16;
    uint4 word[COUNT];
};

template <typename T>
__device__ __forceinline__ void load(const T* from, float (&to)[VECTOR]) {
    Words<T> words;
#pragma unroll
    for (int i = 0; i < Words<T>::COUNT; ++i)
        words.word[i] = __ldcg(reinterpret_cast<const uint4*>(from) + i);
    const T* values = reinterpret_cast<const T*>(words.word);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) to[i] = to_float(values[i]);
}

template <typename T>
__device__ __forceinline__ void store(T* to, const float (&from)[VECTOR]) {
    Words<T> words;
    T* values = reinterpret_cast<T*>(words.word);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) values[i] = from_float<T>(from[i]);
#pragma unroll
    for (int i = 0; i < Words<T>::COUNT; ++i)
        __stcg(reinterpret_cast<uint4*>(to) + i, words.word[i]);
}

}  // namespace liftcore
