// One training batch, made on the device from the document's tokens and a step counter.
//
// Step s takes the segments segments[s, 0..B) of an epoch whose first segment has first[s]
// tokens; a negative number is an empty row. W = P + S. Beyond the last step the batch is empty
// and the counter stands still, so that a replay too many does no harm.
#include "library.h"
#include "segments.h"

using namespace liftcore;

constexpr int THREADS = 256;

// grid (⌈W / THREADS⌉, B): a thread writes row t of batch row b.
__global__ void __launch_bounds__(THREADS) segment_batch_kernel(
    const int64_t* __restrict__ tokens, const int64_t* __restrict__ prefix, int64_t prefix_length,
    const int32_t* __restrict__ segments, const int32_t* __restrict__ first, int64_t steps, Cut cut,
    int64_t* counter, int64_t* __restrict__ input_ids, int64_t* __restrict__ labels,
    float* __restrict__ weights, int64_t* __restrict__ row_index, int64_t max_rows,
    int64_t* __restrict__ count) {
    const int64_t step = counter[0], b = blockIdx.y, batch = gridDim.y;
    const bool live = step >= 0 && step < steps;
    const int32_t* numbers = segments + (live ? step * batch : 0);
    if (live) cut.first = first[step];

    // Scored rows are known by arithmetic, so their places need no scan over the batch: only the
    // counts of the B segments are added up.
    __shared__ int before, total;  // the caller has checked that B · W < 2³¹
    if (threadIdx.x == 0) before = total = 0;
    __syncthreads();
    for (int64_t other = threadIdx.x; live && other < batch; other += THREADS) {
        const Rows rows = scored(cut, numbers[other], prefix_length);
        const int n = static_cast<int>(rows.end - rows.begin);
        if (other < b) atomicAdd(&before, n);
        atomicAdd(&total, n);
    }
    __syncthreads();

    const int64_t width = prefix_length + cut.size;
    const int64_t t = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (t < width) {
        const int64_t number = live ? numbers[b] : -1, at = b * width + t;
        const Rows rows = scored(cut, number, prefix_length);
        const Cell c = cell(cut, number, rows, tokens, prefix, prefix_length, t);
        input_ids[at] = c.id;
        labels[at] = c.label;
        weights[at] = c.weight;
        const int64_t place = before + t - rows.begin;
        if (rows.begin <= t && t < rows.end && place < max_rows) row_index[place] = at;
        // The rest of the list names a row that is never scored.
        const int64_t spare = total + at;
        if (spare < max_rows) row_index[spare] = width - 1;
    }

    // Every block has read the counter before it draws its ticket.
    __syncthreads();
    if (threadIdx.x != 0) return;
    const unsigned blocks = gridDim.x * gridDim.y;
    if (atomicInc(reinterpret_cast<unsigned*>(counter + 1), blocks - 1) == blocks - 1) {
        *count = total;
        if (live) counter[0] = step + 1;
    }
}

cudaError_t liftcore::load_segment_batch() {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, segment_batch_kernel);
}

int liftcore_segment_batch(
    const int64_t* tokens, int64_t length, const int64_t* prefix, int64_t prefix_length,
    const int32_t* segments, const int32_t* first, int64_t steps, int64_t batch, int64_t size,
    int64_t stride, int loss, int64_t* counter, int64_t* input_ids, int64_t* labels,
    float* weights, int64_t* row_index, int64_t max_rows, int64_t* count, cudaStream_t stream) {
    const Cut cut = {length, size, stride, size, loss};
    const int64_t width = prefix_length + size;
    const dim3 grid((width + THREADS - 1) / THREADS, batch);
    segment_batch_kernel<<<grid, THREADS, 0, stream>>>(
        tokens, prefix, prefix_length, segments, first, steps, cut, counter, input_ids, labels,
        weights, row_index, max_rows, count);
    return cudaGetLastError();
}
