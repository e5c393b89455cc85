// Products of bfloat16 activations with weights of 16, 8 and 4 bits, for processors with AVX-512 BF16.
//
// The surprising idea: whatever the number of rows, each output is summed over the same groups of inputs in the same
// order, so a row's product does not depend on the rows beside it. Few rows widen rounded weights in registers, because
// reading them is the time that a product takes; many rows widen 64 outputs at a time into a panel that stays in the
// cache. Integers up to 8 bits are exact in bfloat16, so both ways multiply the same numbers.
//
// Weights come in blocks of 64 outputs (padded with zeros), four vectors of 16, and within a block in pairs of inputs:
//   bfloat16 and int8  [N/64][K/2][64][2]
//   int4  [N/64][K/8][4][32] of 16 bits: lane 2o + i holds output o and, 4 bits each, inputs i, i + 2, i + 4 and i + 6.

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace {

constexpr int kOutputs = 64;
constexpr int kVectors = 4;
constexpr int kRows = 6;         // 24 sums, 4 weights and an activation: 29 of 32 registers
constexpr int64_t kFewRows = 24;  // up to here widening again for every six rows costs less than a panel
constexpr int64_t kChunk = 1024; // inputs of one panel, 128 KiB: a multiple of every group size

using Sums = __m512[kRows][kVectors];

inline __m512bh pair_of_inputs(const bf16* x) {
  int32_t bits;
  std::memcpy(&bits, x, sizeof bits);
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits));
}

// How one block's weights are read: `kPairs` pairs of inputs at a time, `kStride` elements further on each time.
struct Plain {
  using Element = bf16;
  static constexpr int kPairs = 1;
  static constexpr int kStride = 2 * kOutputs;
  const bf16* at;

  explicit Plain(const bf16* p) : at(p) {}
  __m512bh get(int, int vector) const { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(at + 32 * vector)); }
};

struct Int8 {
  using Element = int8_t;
  static constexpr int kPairs = 1;
  static constexpr int kStride = 2 * kOutputs;
  const int8_t* at;

  explicit Int8(const int8_t* p) : at(p) {}
  __m512bh get(int, int vector) const {
    const __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32 * vector)));
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(wide)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(wide, 1)));
    return _mm512_cvtne2ps_pbh(high, low);
  }
};

// -8 to 7 in bfloat16, twice: a look-up reads five bits, and the fifth belongs to the next input.
alignas(64) constexpr bf16 kNibbles[32] = {0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                                           0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
                                           0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                                           0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};

struct Int4 {
  using Element = uint16_t;
  static constexpr int kPairs = 4;
  static constexpr int kStride = 2 * kOutputs;
  __m512i lanes[kVectors];

  explicit Int4(const uint16_t* p) {
    for (int v = 0; v < kVectors; ++v) lanes[v] = _mm512_loadu_si512(p + 32 * v);
  }
  __m512bh get(int pair, int vector) const {
    const __m512i codes = _mm512_srli_epi16(lanes[vector], 4 * pair);
    return reinterpret_cast<__m512bh>(_mm512_permutexvar_epi16(codes, _mm512_load_si512(kNibbles)));
  }
};

// Adds the products of `rows` rows with `inputs` inputs of one block to `sums`.
template <class Weights, int rows>
inline void multiply(const typename Weights::Element* w, const bf16* x, int64_t stride, int64_t inputs, Sums& sums) {
  __m512 s[rows][kVectors];
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < kVectors; ++v) s[r][v] = _mm512_setzero_ps();
  for (int64_t k = 0; k < inputs; k += 2 * Weights::kPairs, w += Weights::kStride) {
    const Weights unit(w);
#pragma GCC unroll 4
    for (int pair = 0; pair < Weights::kPairs; ++pair) {
      __m512bh b[kVectors];
      for (int v = 0; v < kVectors; ++v) b[v] = unit.get(pair, v);
      for (int r = 0; r < rows; ++r) {
        const __m512bh a = pair_of_inputs(x + r * stride + k + 2 * pair);
        for (int v = 0; v < kVectors; ++v) s[r][v] = _mm512_dpbf16_ps(s[r][v], a, b[v]);
      }
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < kVectors; ++v) sums[r][v] = s[r][v];
}

template <class Weights>
inline void multiply(int rows, const typename Weights::Element* w, const bf16* x, int64_t stride, int64_t inputs,
                     Sums& sums) {
  switch (rows) {
    case 1: return multiply<Weights, 1>(w, x, stride, inputs, sums);
    case 2: return multiply<Weights, 2>(w, x, stride, inputs, sums);
    case 3: return multiply<Weights, 3>(w, x, stride, inputs, sums);
    case 4: return multiply<Weights, 4>(w, x, stride, inputs, sums);
    case 5: return multiply<Weights, 5>(w, x, stride, inputs, sums);
    default: return multiply<Weights, 6>(w, x, stride, inputs, sums);
  }
}

// One product. `group` inputs are summed before they are scaled; `middles` is null where there is one scale for all.
template <class Weights>
struct Product {
  const bf16* x;
  int64_t rows, inputs, outputs, group;
  const typename Weights::Element* weights;
  const bf16* scales;      // int4: [N/64][K/group][64]
  const bf16* middles;     // the same
  const float* channel;    // int8: [N]
  const bf16* bias;        // [N] or null
  bf16* out;               // [rows][N]
  const float* group_sums; // int4: [rows][K/group], of x

  static constexpr int64_t kPerInput = Weights::kStride / (2 * Weights::kPairs);

  void scale(int64_t block, int64_t g, int64_t row, int num, const Sums& sums, float* totals) const {
    const int64_t groups = inputs / group;
    for (int v = 0; v < kVectors; ++v) {
      __m512 s, m;
      if (middles) {
        s = load(scales + (block * groups + g) * kOutputs + 16 * v);
        m = load(middles + (block * groups + g) * kOutputs + 16 * v);
      }
      for (int r = 0; r < num; ++r) {
        float* to = totals + (row + r) * kOutputs + 16 * v;
        __m512 total = _mm512_loadu_ps(to);
        if (middles) {
          total = _mm512_fmadd_ps(s, sums[r][v], total);
          total = _mm512_fmadd_ps(m, _mm512_set1_ps(group_sums[(row + r) * groups + g]), total);
        } else {
          total = _mm512_add_ps(sums[r][v], total);
        }
        _mm512_storeu_ps(to, total);
      }
    }
  }

  void finish(int64_t block, const float* totals) const {
    const int64_t first = block * kOutputs;
    for (int v = 0; v < kVectors; ++v) {
      if (first + 16 * v >= outputs) return;
      const __mmask16 mask = lanes(first + 16 * v, outputs);
      const __m512 s = channel ? _mm512_maskz_loadu_ps(mask, channel + first + 16 * v) : _mm512_set1_ps(1);
      const __m512 b = bias ? load(bias + first + 16 * v, mask) : _mm512_setzero_ps();
      for (int64_t r = 0; r < rows; ++r) {
        const __m512 y = _mm512_fmadd_ps(_mm512_loadu_ps(totals + r * kOutputs + 16 * v), s, b);
        store(out + r * outputs + first + 16 * v, mask, y);
      }
    }
  }

  void few_rows(int64_t block, float* totals) const {
    const auto* w = weights + block * inputs * kPerInput;
    Sums sums;
    for (int64_t row = 0; row < rows; row += kRows) {
      const int num = static_cast<int>(std::min<int64_t>(kRows, rows - row));
      for (int64_t k = 0; k < inputs; k += group) {
        const int64_t size = std::min(group, inputs - k);
        multiply<Weights>(num, w + k * kPerInput, x + row * inputs + k, inputs, size, sums);
        scale(block, k / group, row, num, sums, totals);
      }
    }
  }

  static const bf16* widened(const typename Weights::Element* w, int64_t num, bf16* panel) {
    if constexpr (std::is_same_v<Weights, Plain>) {
      return w;
    } else {
      bf16* to = panel;
      for (int64_t k = 0; k < num; k += 2 * Weights::kPairs, w += Weights::kStride) {
        const Weights unit(w);
        for (int pair = 0; pair < Weights::kPairs; ++pair, to += 2 * kOutputs)
          for (int v = 0; v < kVectors; ++v)
            _mm512_storeu_si512(to + 32 * v, reinterpret_cast<__m512i>(unit.get(pair, v)));
      }
      return panel;
    }
  }

  void many_rows(int64_t block, float* totals, bf16* panel) const {
    const auto* w = weights + block * inputs * kPerInput;
    Sums sums;
    for (int64_t chunk = 0; chunk < inputs; chunk += kChunk) {
      const int64_t end = std::min(chunk + kChunk, inputs);
      const bf16* plain = widened(w + chunk * kPerInput, end - chunk, panel);
      for (int64_t row = 0; row < rows; row += kRows) {
        const int num = static_cast<int>(std::min<int64_t>(kRows, rows - row));
        for (int64_t k = chunk; k < end; k += group) {
          const int64_t size = std::min(group, end - k);
          multiply<Plain>(num, plain + (k - chunk) * kOutputs, x + row * inputs + k, inputs, size, sums);
          scale(block, k / group, row, num, sums, totals);
        }
      }
    }
  }

  void run() const {
    const int64_t blocks = (outputs + kOutputs - 1) / kOutputs;
#pragma omp parallel if (omp_get_max_threads() > 1)
    {
      // Kept from call to call: a step must not wait for the allocator.
      static thread_local std::vector<float> totals;
      static thread_local std::vector<bf16> panel(kChunk * kOutputs);
#pragma omp for schedule(static)
      for (int64_t block = 0; block < blocks; ++block) {
        totals.assign(rows * kOutputs, 0.0f);
        if (rows <= kFewRows)
          few_rows(block, totals.data());
        else
          many_rows(block, totals.data(), panel.data());
        finish(block, totals.data());
      }
    }
  }
};

}  // namespace

extern "C" {

int capstan_supported() {
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

void capstan_bf16(const bf16* x, int64_t rows, int64_t inputs, int64_t outputs, const bf16* weights, const bf16* bias,
                  bf16* out) {
  Product<Plain>{x, rows, inputs, outputs, kChunk, weights, nullptr, nullptr, nullptr, bias, out, nullptr}.run();
}

void capstan_int8(const bf16* x, int64_t rows, int64_t inputs, int64_t outputs, const int8_t* weights,
                  const float* scales, const bf16* bias, bf16* out) {
  Product<Int8>{x, rows, inputs, outputs, kChunk, weights, nullptr, nullptr, scales, bias, out, nullptr}.run();
}

void capstan_int4(const bf16* x, int64_t rows, int64_t inputs, int64_t outputs, int64_t group, const uint16_t* weights,
                  const bf16* scales, const bf16* middles, const bf16* bias, bf16* out) {
  const int64_t groups = inputs / group;
  std::vector<float> sums(rows * groups);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t g = 0; g < groups; ++g) {
      __m512 sum = _mm512_setzero_ps();
      for (int64_t k = 0; k < group; k += 16) sum = _mm512_add_ps(sum, load(x + row * inputs + g * group + k));
      sums[row * groups + g] = _mm512_reduce_add_ps(sum);
    }
  Product<Int4>{x, rows, inputs, outputs, group, weights, scales, middles, nullptr, bias, out, sums.data()}.run();
}

}  // extern "C"
