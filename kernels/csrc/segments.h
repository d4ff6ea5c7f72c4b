// The arithmetic of segments and of batch rows, for the device and for a host compiler alike.
//
//   start(i) = max(0, first − S + i · stride)      stop(i) = min(L, first + i · stride)
//
// One formula for all schedules. "overlap" and "trivial": first = S. "jitter": stride = S, and
// first is the length of the epoch's first segment, in [1, S].
#pragma once

#include <stdint.h>

#ifdef __CUDACC__
#define LIFTCORE_BOTH __host__ __device__ __forceinline__
#else
#define LIFTCORE_BOTH static inline
#endif

namespace liftcore {

enum Loss { ALL = 0, NEW = 1, MEAN = 2 };
constexpr int64_t IGNORE = -100;

struct Cut {
    int64_t length;  // L, tokens of the document
    int64_t size;    // S, tokens of a segment
    int64_t stride;  // tokens between the starts of neighbours, at most S
    int64_t first;   // tokens of segment 0 (before it is cut at L)
    int loss;        // Loss
};

LIFTCORE_BOTH int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
LIFTCORE_BOTH int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

LIFTCORE_BOTH int64_t start(const Cut& c, int64_t i) {
    return larger(0, c.first - c.size + i * c.stride);
}

LIFTCORE_BOTH int64_t stop(const Cut& c, int64_t i) {
    return smaller(c.length, c.first + i * c.stride);
}

// How many segments an epoch has.
LIFTCORE_BOTH int64_t segments(const Cut& c) {
    return 1 + (larger(0, c.length - c.first) + c.stride - 1) / c.stride;
}

// How many segments hold token t of the document.
LIFTCORE_BOTH int64_t holders(const Cut& c, int64_t t) {
    const int64_t last = smaller(segments(c) - 1, (t - c.first + c.size) / c.stride);
    const int64_t before = t < c.first ? 0 : (t - c.first) / c.stride + 1;
    return last - before + 1;
}

// What token t counts as a target in segment i.
LIFTCORE_BOTH float weight(const Cut& c, int64_t i, int64_t t) {
    if (c.loss == NEW) return i == 0 || t >= stop(c, i - 1) ? 1.0f : 0.0f;
    return c.loss == MEAN ? 1.0f / static_cast<float>(holders(c, t)) : 1.0f;
}

// The scored rows [begin, end) of segment i behind a prefix of P tokens. They have no gap: row t
// predicts token t + 1 − P of the segment, and only a segment's head can count nothing. The row
// behind the last token predicts nothing, so row P + S − 1 is never scored.
struct Rows {
    int64_t begin, end;
};

LIFTCORE_BOTH Rows scored(const Cut& c, int64_t i, int64_t prefix) {
    if (i < 0) return {0, 0};
    const int64_t known = c.loss == NEW && i > 0 ? stop(c, i - 1) - start(c, i) : 0;
    // Without a prefix the first token has nothing before it to be predicted from.
    const int64_t begin = prefix + larger(known, prefix ? 0 : 1) - 1;
    return {begin, larger(begin, prefix + stop(c, i) - start(c, i) - 1)};
}

// Row t of a batch row: segment i behind its prefix, or padding where i < 0.
struct Cell {
    int64_t id, label;
    float weight;
};

LIFTCORE_BOTH Cell cell(const Cut& c, int64_t i, const Rows& rows, const int64_t* tokens,
                        const int64_t* prefix, int64_t prefix_length, int64_t t) {
    Cell out = {0, IGNORE, 0.0f};
    if (i < 0) return out;
    const int64_t at = start(c, i) + t - prefix_length;  // in the document
    if (t < prefix_length) {
        out.id = prefix[t];
    } else if (at < stop(c, i)) {
        out.id = tokens[at];
    }
    if (rows.begin <= t && t < rows.end) {
        out.label = tokens[at + 1];
        out.weight = weight(c, i, at + 1);
    }
    return out;
}

}  // namespace liftcore
