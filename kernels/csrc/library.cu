// What the library is, and whether it runs here.
#include "library.h"

int liftcore_interface() { return LIFTCORE_INTERFACE; }

int liftcore_probe(int device) {
    cudaError_t error = cudaSetDevice(device);
    for (auto load : {liftcore::load_segment_batch, liftcore::load_lora_norm,
                      liftcore::load_lora_update})
        if (error == cudaSuccess) error = load();
    return error;
}

const char* liftcore_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
