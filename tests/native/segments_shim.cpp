// The arithmetic of segments.h behind C functions, compiled by the host's compiler.
#include "segments.h"

using namespace liftcore;

extern "C" int64_t count(int64_t length, int64_t size, int64_t stride, int64_t first) {
    return segments({length, size, stride, first, ALL});
}

extern "C" void bounds(int64_t length, int64_t size, int64_t stride, int64_t first, int64_t n,
                       int64_t* starts, int64_t* stops) {
    const Cut cut = {length, size, stride, first, ALL};
    for (int64_t i = 0; i < n; ++i) starts[i] = start(cut, i), stops[i] = stop(cut, i);
}

// The weights of segment i, and the row [P + S] of a batch that holds it.
extern "C" void one(int64_t length, int64_t size, int64_t stride, int64_t first, int loss,
                    int64_t i, const int64_t* tokens, const int64_t* prefix,
                    int64_t prefix_length, float* weights, int64_t* ids, int64_t* labels,
                    float* row_weights, int64_t* scored_rows) {
    const Cut cut = {length, size, stride, first, loss};
    const Rows rows = scored(cut, i, prefix_length);
    for (int64_t t = start(cut, i); i >= 0 && t < stop(cut, i); ++t)
        weights[t - start(cut, i)] = weight(cut, i, t);
    for (int64_t t = 0; t < prefix_length + size; ++t) {
        const Cell c = cell(cut, i, rows, tokens, prefix, prefix_length, t);
        ids[t] = c.id, labels[t] = c.label, row_weights[t] = c.weight;
    }
    scored_rows[0] = rows.begin, scored_rows[1] = rows.end;
}
