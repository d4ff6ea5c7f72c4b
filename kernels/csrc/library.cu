// What the library is, and whether it runs here.
#include "library.h"

__global__ void probe_kernel() {}

int liftcore_interface() { return LIFTCORE_INTERFACE; }

int liftcore_probe(int device) {
    cudaError_t error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, probe_kernel);
}

const char* liftcore_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
