// Products of bfloat16 activations with bfloat16 weights.
//
// The surprising idea: whatever the number of rows, each output is summed over the same chunks of inputs in the same
// order, so a row's product does not depend on the rows beside it. Weights come in blocks of 64 outputs (padded with
// zeros), four vectors of 16, and within a block in pairs of inputs: [N/64][K/2][64][2].

#include <omp.h>

#include <algorithm>
#include <vector>

#include "blocks.h"
#include "vectors.h"

namespace {

constexpr int64_t kChunk = 1024;  // inputs of a block, 128 KiB of weights, that stay in the cache while rows pass

struct Product {
  const bf16* x;
  int64_t rows;
  bf16* out;  // [rows][N]
  int64_t inputs, outputs;
  const bf16* weights;
  const bf16* bias;  // [N] or null

  template <int n>
  void add_chunk(int64_t block, int64_t row, int64_t first, int64_t end, float* totals) const {
    const bf16* w = weights + (block * inputs + first) * kOutputs;
    Floats sums[n][kVectors];
    for (int r = 0; r < n; ++r)
      for (int v = 0; v < kVectors; ++v) sums[r][v] = all(0.0f);
    for (int64_t k = first; k < end; k += 2, w += 2 * kOutputs) {
      Ints pairs[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        fetch_ahead(w + 32 * v);
        pairs[v] = load_ints(w + 32 * v);
      }
#pragma GCC unroll 6
      for (int r = 0; r < n; ++r) {
        const Ints activations = word(x + (row + r) * inputs + k);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[r][v] = dot_bf16(sums[r][v], pairs[v], activations);
      }
    }
    for (int r = 0; r < n; ++r)
      for (int v = 0; v < kVectors; ++v) {
        float* to = totals + (row + r) * kOutputs + 16 * v;
        store(to, load(to) + sums[r][v]);
      }
  }

  void run() const {
    const int64_t blocks = (outputs + kOutputs - 1) / kOutputs;
#pragma omp parallel if (omp_get_max_threads() > 1)
    {
      // Kept from call to call: a step must not wait for the allocator.
      static thread_local std::vector<float> totals;
#pragma omp for schedule(static)
      for (int64_t block = 0; block < blocks; ++block) {
        totals.assign(rows * kOutputs, 0.0f);
        for (int64_t chunk = 0; chunk < inputs; chunk += kChunk)
          by_rows(rows, [&](auto n, int64_t row) {
            add_chunk<n()>(block, row, chunk, std::min(chunk + kChunk, inputs), totals.data());
          });
        finish(block, rows, outputs, totals.data(), nullptr, bias, out);
      }
    }
  }
};

}  // namespace

extern "C" void capstan_bf16(const Linear* by, const bf16* x, int64_t rows, bf16* out) {
  Product{x, rows, out, by->inputs, by->outputs, static_cast<const bf16*>(by->weights), by->bias}.run();
}
