// What products with bfloat16 weights share, however these are held.
//
// The surprising idea: whatever the number of rows, each output is summed over the same inputs in the same order, so a
// row's product does not depend on the rows beside it.
#pragma once

#include <omp.h>

#include <algorithm>
#include <vector>

#include "blocks.h"
#include "vectors.h"

constexpr int kPair = 2 * kOutputs;                // weights that a block has for two inputs
constexpr int kPlainBytes = kPair * sizeof(bf16);  // of them
constexpr int64_t kChunk = 1024;  // inputs of a block, 128 KiB of weights, that stay in the second cache while rows pass

inline int64_t blocks_of(int64_t outputs) { return (outputs + kOutputs - 1) / kOutputs; }
inline int64_t chunks_of(int64_t inputs) { return (inputs + kChunk - 1) / kChunk; }

// Weights as they are, from pair of inputs to pair of inputs.
struct Plain {
  const uint8_t* pair;

  void begin() {
#pragma GCC unroll 4
    for (int line = 0; line < kPlainBytes; line += 64) fetch_ahead(pair + line);
  }
  Ints read(int v) { return load_ints(pair + 64 * v); }
  void end() { pair += kPlainBytes; }
};

struct Bf16Product {
  const Linear* by;
  const bf16* x;
  int64_t rows;
  bf16* out;  // [rows][outputs]

  // Adds what the inputs from `first` to `end` of n rows come to.
  template <int n, class Weights>
  void add(Weights weights, int64_t row, int64_t first, int64_t end, float* totals) const {
    Floats sums[n][kVectors];
    for (int r = 0; r < n; ++r)
      for (int v = 0; v < kVectors; ++v) sums[r][v] = load(totals + (row + r) * kOutputs + 16 * v);
    for (int64_t k = first; k < end; k += 2) {
      weights.begin();
      Ints pairs[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) pairs[v] = weights.read(v);
#pragma GCC unroll 6
      for (int r = 0; r < n; ++r) {
        const Ints activations = word(x + (row + r) * by->inputs + k);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[r][v] = dot_bf16(sums[r][v], pairs[v], activations);
      }
      weights.end();
    }
    for (int r = 0; r < n; ++r)
      for (int v = 0; v < kVectors; ++v) store(totals + (row + r) * kOutputs + 16 * v, sums[r][v]);
  }

  // The same for all rows from `row` on.
  template <class Weights>
  void add_from(int64_t row, Weights weights, int64_t first, int64_t end, float* totals) const {
    by_rows(rows, [&](auto n, int64_t at) { add<n()>(weights, at, first, end, totals); }, row);
  }

  // `add_chunk(block, chunk, first, end, totals)` adds a chunk of a block to the totals [rows][64].
  template <class AddChunk>
  void run(const AddChunk& add_chunk) const {
#pragma omp parallel if (omp_get_max_threads() > 1)
    {
      // Kept from call to call: a step must not wait for the allocator.
      static thread_local std::vector<float> totals;
#pragma omp for schedule(static)
      for (int64_t block = 0; block < blocks_of(by->outputs); ++block) {
        totals.assign(rows * kOutputs, 0.0f);
        for (int64_t chunk = 0; chunk < chunks_of(by->inputs); ++chunk)
          add_chunk(block, chunk, chunk * kChunk, std::min((chunk + 1) * kChunk, by->inputs), totals.data());
        finish(block, rows, by->outputs, totals.data(), nullptr, by->bias, out);
      }
    }
  }
};
