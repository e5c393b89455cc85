// Products of bfloat16 activations with bfloat16 weights as they are: in blocks of 64 outputs (padded with zeros), four
// vectors of 16, and within a block in pairs of inputs: [N/64][K/2][64][2].

#include "bf16.h"

extern "C" void capstan_bf16(const Linear* by, const bf16* x, int64_t rows, bf16* out) {
  const Bf16Product product{by, x, rows, out};
  const auto* weights = static_cast<const uint8_t*>(by->weights);
  product.run([&](int64_t block, int64_t, int64_t first, int64_t end, float* totals) {
    product.add_from(0, Plain{weights + (block * by->inputs + first) / 2 * kPlainBytes}, first, end, totals);
  });
}
