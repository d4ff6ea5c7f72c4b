// The plain C interface of libliftcore_cuda.so: no torch, no Python.
//
// Every function launches on `stream` and returns a cudaError_t, 0 for success. Pointers are
// device pointers; the caller has checked sizes and types.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#define LIFTCORE_API extern "C" __attribute__((visibility("default")))

// Raised by one whenever a signature changes; native.py holds the same.
#define LIFTCORE_INTERFACE 2

enum LiftcoreType { LIFTCORE_FP32 = 0, LIFTCORE_BF16 = 1, LIFTCORE_FP16 = 2 };

LIFTCORE_API int liftcore_interface();

// Makes `device` current and loads every kernel there: an error says that the driver is too old or
// that the library has no code for it. A kernel that is loaded can be captured in a CUDA graph.
LIFTCORE_API int liftcore_probe(int device);

LIFTCORE_API const char* liftcore_error(int code);

LIFTCORE_API int liftcore_segment_batch(
    const int64_t* tokens, int64_t length, const int64_t* prefix, int64_t prefix_length,
    const int32_t* segments, const int32_t* first, int64_t steps, int64_t batch, int64_t size,
    int64_t stride, int loss, int64_t* counter, int64_t* input_ids, int64_t* labels,
    float* weights, int64_t* row_index, int64_t max_rows, int64_t* count, cudaStream_t stream);

LIFTCORE_API int liftcore_lora_norm(
    const void* grad, int64_t numel, int grad_type, float* scratch, const float* rates,
    int64_t rate_count, int64_t* step, float* norm, int32_t* status, double max_norm, double beta1,
    double beta2, double weight_decay, cudaStream_t stream);

LIFTCORE_API int liftcore_lora_update(
    float* master, float* exp_avg, float* exp_avg_sq, void* grad, void* shadow, int64_t numel,
    int grad_type, int shadow_type, const float* scratch, double beta1, double beta2, double eps,
    cudaStream_t stream);

namespace liftcore {

cudaError_t load_segment_batch();
cudaError_t load_lora_norm();
cudaError_t load_lora_update();

}  // namespace liftcore
