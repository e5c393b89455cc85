// Products with weights of 8 and 4 bits, in integers.
//
// A row's activations are rounded to integers first, in groups of inputs that have a scale each. The sum of a group's
// products is then exact, and groups are added in one order: a row's product does not depend on the rows beside it. The
// surprising idea: processors multiply unsigned weights with signed activations, and nobody subtracts the weights'
// middle from them. That middle times the sum of a group's activations is where the group's sum begins.
//
// Weights come in blocks of 64 outputs (padded), four vectors of 16, and within a block in words of 32 bits, an output
// each, which meet words of activations:
//   16-bit activations  [N/64][K/2][64][2]  signed weights of 8 bits; the word is widened when it is read
//   8-bit activations   [N/64][K/4][64][4]  weights of 8 bits, 128 added
//   8-bit activations   [N/64][K/8][64][4]  weights of 4 bits, 8 added: four inputs in the low halves, four in the high

#include <omp.h>

#include <algorithm>
#include <vector>

#include "blocks.h"
#include "vectors.h"

namespace {

constexpr int64_t kChunk = 512;  // inputs whose weights stay in the first cache while rows pass: a multiple of groups

struct Int8 {
  using Activation = int16_t;
  static constexpr bool kGrouped = false;
  static constexpr int kMiddle = 0;
  static constexpr int kWords = 1;    // of activations that meet one of weights
  static constexpr int kBytes = 32;   // of weights in 16 outputs
  static Ints dot(Ints sum, Ints weights, Ints x) { return dot_pairs(sum, weights, x); }
  static Ints read(const uint8_t* w, int) { return widen_bytes(w); }
};

struct Int8Dynamic {
  using Activation = int8_t;
  static constexpr bool kGrouped = false;
  static constexpr int kMiddle = 128;
  static constexpr int kWords = 1;
  static constexpr int kBytes = 64;
  static Ints dot(Ints sum, Ints weights, Ints x) { return dot_quads(sum, weights, x); }
  static Ints read(const uint8_t* w, int) { return load_ints(w); }
};

struct Int4 {
  using Activation = int8_t;
  static constexpr bool kGrouped = true;
  static constexpr int kMiddle = 8;
  static constexpr int kWords = 2;
  static constexpr int kBytes = 64;
  static Ints dot(Ints sum, Ints weights, Ints x) { return dot_small_quads(sum, weights, x); }
  static Ints read(const uint8_t* w, int half) { return half ? high_halves(load_ints(w)) : low_halves(load_ints(w)); }
};

// What a group of one row's activations is worth.
struct Group {
  float scale;
  float sum;      // of the activations
  int32_t start;  // of the sum of products
};

template <class Weights>
struct Product {
  const bf16* x;
  int64_t rows;
  bf16* out;  // [rows][N]
  int64_t inputs, outputs, group;
  const uint8_t* weights;
  const float* channel;  // [N], or null where groups have scales
  const bf16* scales;    // [N/64][K/group][64], or null
  const bf16* middles;   // the same
  const bf16* bias;      // [N] or null

  using Activation = typename Weights::Activation;
  static constexpr int kInputs = 4 / sizeof(Activation) * Weights::kWords;  // that a unit of weights multiplies

  int64_t groups() const { return (inputs + group - 1) / group; }
  int64_t stride() const { return (inputs + 15) / 16 * 16; }

  void round(int64_t row, Activation* codes, Group* found) const {
    constexpr float kMost = sizeof(Activation) == 1 ? 127 : 32767;
    const bf16* from = x + row * inputs;
    for (int64_t k = 0; k < inputs; k += group, ++found) {
      const int64_t end = std::min(k + group, inputs);
      // Below any activation, and not 0: a group of zeros has a scale too. What is no number stays what it is.
      const float largest = largest_magnitude(from + k, end - k), most = largest < 1e-30f ? 1e-30f : largest;
      const Floats by = all(kMost / most);
      Ints sum = all(0);
      for (int64_t i = k; i < end; i += 16) {
        const Ints rounded = to_ints(load(from + i, lanes(i, end)) * by);
        sum += rounded;
        store_saturated(codes + i, rounded);
      }
      const int32_t total = sum_of(sum);
      found->scale = most / kMost;
      found->sum = found->scale * total;
      found->start = -Weights::kMiddle * total;
    }
  }

  // Adds what the groups from `g` to `end` of `n` rows' inputs contribute to the totals of a block.
  template <int n>
  void add_groups(int64_t block, int64_t g, int64_t end, const Activation* codes, const Group* found,
                  float* totals) const {
    const int64_t width = stride(), num = groups();
    const uint8_t* w = weights + (block * units(inputs) + g * group / kInputs) * kVectors * Weights::kBytes;
    for (; g < end; ++g)
      w = add_group<n>(w, (block * num + g) * kOutputs, g * group, codes, width, found + g, num, totals);
  }

  // One group, whose inputs begin at `first` and its scales at `at`; returns where the next one's weights begin. Takes
  // what its caller knows of rows' widths and groups: to count groups again is a division, as long as a row's products.
  template <int n>
  const uint8_t* add_group(const uint8_t* w, int64_t at, int64_t first, const Activation* codes, int64_t width,
                           const Group* found, int64_t num, float* totals) const {
    const int64_t end = std::min(first + group, inputs);
    // Every loop over sums is unrolled, so that they stay in registers.
    Ints sums[n][kVectors];
#pragma GCC unroll 6
    for (int r = 0; r < n; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = all(found[r * num].start);
    for (int64_t k = first; k < end; k += kInputs, w += kVectors * Weights::kBytes)
#pragma GCC unroll 2
      for (int i = 0; i < Weights::kWords; ++i) {
        Ints words[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const uint8_t* at = w + v * Weights::kBytes;
          if (i == 0) fetch_ahead(at);
          words[v] = Weights::read(at, i);
        }
#pragma GCC unroll 6
        for (int r = 0; r < n; ++r) {
          const Ints activations = word(codes + r * width + k + i * kInputs / Weights::kWords);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) sums[r][v] = Weights::dot(sums[r][v], words[v], activations);
        }
      }
    Floats scale[kVectors], middle[kVectors];
    if constexpr (Weights::kGrouped)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        scale[v] = load(scales + at + 16 * v);
        middle[v] = load(middles + at + 16 * v);
      }
#pragma GCC unroll 6
    for (int r = 0; r < n; ++r) {
      const Floats by = all(found[r * num].scale), sum = all(found[r * num].sum);
      float* to = totals + r * kOutputs;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Floats product = to_floats(sums[r][v]), total = load(to + 16 * v);
        if constexpr (Weights::kGrouped)
          store(to + 16 * v, fma(product * by, scale[v], fma(middle[v], sum, total)));
        else
          store(to + 16 * v, fma(product, by, total));
      }
    }
    return w;
  }

  static int64_t units(int64_t inputs) { return (inputs + kInputs - 1) / kInputs; }

  void run() const {
    const int64_t blocks = (outputs + kOutputs - 1) / kOutputs, num = groups(), in_chunk = kChunk / group;
    // Kept from call to call: a step must not wait for the allocator.
    static thread_local std::vector<Activation> all_codes;
    static thread_local std::vector<Group> all_groups;
    all_codes.resize(rows * stride());
    all_groups.resize(rows * num);
    Activation* codes = all_codes.data();
    Group* found = all_groups.data();
#pragma omp parallel if (omp_get_max_threads() > 1)
    {
      static thread_local std::vector<float> totals;
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows; ++row) round(row, codes + row * stride(), found + row * num);
#pragma omp for schedule(static)
      for (int64_t block = 0; block < blocks; ++block) {
        totals.assign(rows * kOutputs, 0.0f);
        for (int64_t chunk = 0; chunk < num; chunk += in_chunk)
          by_rows(rows, [&](auto n, int64_t row) {
            add_groups<n()>(block, chunk, std::min(chunk + in_chunk, num), codes + row * stride(), found + row * num,
                            totals.data() + row * kOutputs);
          });
        finish(block, rows, outputs, totals.data(), channel, bias, out);
      }
    }
  }
};

constexpr int64_t kGroup = 128;  // of activations, where weights have none

template <class Weights>
void by_channel(const Linear* by, const bf16* x, int64_t rows, bf16* out) {
  Product<Weights>{x, rows, out, by->inputs, by->outputs, kGroup, static_cast<const uint8_t*>(by->weights),
                   static_cast<const float*>(by->scales), nullptr, nullptr, by->bias}
      .run();
}

}  // namespace

extern "C" {

void capstan_int8(const Linear* by, const bf16* x, int64_t rows, bf16* out) { by_channel<Int8>(by, x, rows, out); }

void capstan_int8_dynamic(const Linear* by, const bf16* x, int64_t rows, bf16* out) {
  by_channel<Int8Dynamic>(by, x, rows, out);
}

void capstan_int4(const Linear* by, const bf16* x, int64_t rows, bf16* out) {
  Product<Int4>{x, rows, out, by->inputs, by->outputs, by->group, static_cast<const uint8_t*>(by->weights), nullptr,
                static_cast<const bf16*>(by->scales), static_cast<const bf16*>(by->middles), by->bias}
      .run();
}

}  // extern "C"
