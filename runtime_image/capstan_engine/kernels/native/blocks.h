// What all products share: how a weight is handed over, blocks of outputs, few rows at a time, and what becomes of a
// block's totals.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "vectors.h"

// A weight [outputs][inputs] as its product wants it, and that product: out [rows][outputs] of x [rows][inputs].
struct Linear {
  void (*multiply)(const Linear* by, const bf16* x, int64_t rows, bf16* out);
  int64_t inputs, outputs;
  const bf16* bias;     // [outputs] or null
  const void* weights;  // in the product's own layout
  const void* scales;   // as its kind of weights has them; null where it has none
  const void* middles;  // the same
  int64_t group;        // inputs that share a scale
  const int64_t* starts;  // where the rare weights of each chunk of each block begin, and where the last ones end
  const struct Rare* rare;
};

constexpr int kOutputs = 64;  // of a block
constexpr int kVectors = 4;   // of 16 outputs
// At a time: 24 sums, 4 weights and an activation are 29 of 32 registers, and a row's sums alone are 8 of 16.
constexpr int kRows = kRegisters == 32 ? 6 : 1;

// Weights are read in order, but a processor fetches ahead by itself to the end of a page only. Beyond the last weight
// nothing happens: a fetch does not fault.
inline void fetch_ahead(const void* weights) {
  constexpr int kPage = 4096;
  _mm_prefetch(static_cast<const char*>(weights) + kPage, _MM_HINT_T0);
}

// 32 bits of a row's activations, for all outputs.
template <class Activation>
inline Ints word(const Activation* x) {
  int32_t bits;
  std::memcpy(&bits, x, sizeof bits);
  return all(bits);
}

// Calls `work(n, row)` for up to kRows rows at a time; the compiler knows `n()`.
template <int n = kRows, class Work>
inline void by_rows(int64_t rows, const Work& work, int64_t row = 0) {
  for (; rows - row >= n; row += n) work(std::integral_constant<int, n>(), row);
  if constexpr (n > 1) by_rows<n - 1>(rows, work, row);
}

// Totals [rows][64] of a block, times the scales of its outputs, where there are any, plus the bias, to `out` [rows][N].
inline void finish(int64_t block, int64_t rows, int64_t outputs, const float* totals, const float* scales,
                   const bf16* bias, bf16* out) {
  const int64_t first = block * kOutputs;
  for (int64_t i = 0; i < kOutputs && first + i < outputs; i += 16) {
    const Lanes mask = lanes(first + i, outputs);
    const Floats s = scales ? load(scales + first + i, mask, all(0.0f)) : all(1.0f);
    const Floats b = bias ? load(bias + first + i, mask) : all(0.0f);
    for (int64_t r = 0; r < rows; ++r)
      store(out + r * outputs + first + i, mask, fma(load(totals + r * kOutputs + i), s, b));
  }
}
