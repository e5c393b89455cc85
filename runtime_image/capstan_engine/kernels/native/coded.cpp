// Products of bfloat16 activations with bfloat16 weights that are held in 12 bits each, without rounding.
//
// The surprising idea: weights, trained or drawn at random, have few exponents. Fifteen in a row and zero's are all but
// one weight in thousands, so four bits say which, and eight more are sign and fraction. The rare weights that have
// another exponent lie as zeros among the others and are added apart. (That exponents of trained weights carry two to
// three bits of information: DFloat11, arXiv 2504.11651. Codes of one length need no search for where a weight begins.)
//
// What two inputs of a block's 64 outputs have is a unit [N/64][K/2]: 128 bytes [64][2] of signs and fractions, then 32
// words of 16 bits, the i-th of which has the codes of the weights i, 32 + i, 64 + i and 96 + i, the first lowest.
//
// With AVX-512 decoding hides behind the memory that the next weights come from, and so many fewer bytes are so much
// less time. With AVX2 it does not from two rows on, and this file is empty.

#ifdef __AVX512F__

#include "bf16.h"

// A weight whose exponent is not among the sixteen.
struct Rare {
  uint16_t input, output;  // within its chunk and block
  bf16 weight;
};

namespace {

constexpr int kBytes = kPair + kPair / 2;  // of a unit
constexpr int64_t kAgain = 8 * kRows;      // rows for which it does not pay to keep what was decoded
constexpr int kCodes = 16;                 // that of zero, and those of exponents in a row
constexpr int64_t kTile = 32;              // inputs of a row that are a line of the cache

struct Coded {
  const uint8_t* unit;
  const __m512i exponents;  // sixteen, in their place in a bfloat16 and twice in a row: of an index five bits count
  __m512i codes;

  void begin() {
#pragma GCC unroll 3
    for (int line = 0; line < kBytes; line += 64) fetch_ahead(unit + line);
    codes = _mm512_loadu_si512(unit + kPair);
  }
  Ints read(int v) const {
    const __m512i code = v ? _mm512_srli_epi16(codes, 4 * v) : codes;
    const __m512i others = _mm512_and_si512(raw(widen_bytes(unit + 32 * v)), _mm512_set1_epi16(int16_t(0x807f)));
    return ints(_mm512_or_si512(others, _mm512_permutexvar_epi16(code, exponents)));
  }
  void end() { unit += kBytes; }
};

// The same for those who need the weights again as they are.
struct Decoding : Coded {
  uint8_t* kept;

  Ints read(int v) const {
    const Ints pairs = Coded::read(v);
    _mm512_storeu_si512(kept + 64 * v, raw(pairs));
    return pairs;
  }
  void end() {
    Coded::end();
    kept += kPlainBytes;
  }
};

void add_chunk(const Bf16Product& product, const Coded& weights, int64_t first, int64_t end, float* totals) {
  if (product.rows <= kAgain) return product.add_from(0, weights, first, end, totals);
  static thread_local std::vector<uint8_t> kept(kChunk / 2 * kPlainBytes);
  product.add<kRows>(Decoding{weights, kept.data()}, 0, first, end, totals);
  product.add_from(kRows, Plain{kept.data()}, first, end, totals);
}

// Row after row, whose activations are near each other in memory.
void add_rare(const Bf16Product& product, int64_t chunk, int64_t first, float* totals) {
  const Rare* const begin = product.by->rare + product.by->starts[chunk];
  const Rare* const end = product.by->rare + product.by->starts[chunk + 1];
  const bf16* x = product.x + first;
  for (int64_t row = 0; row < product.rows; ++row, x += product.by->inputs, totals += kOutputs)
    for (const Rare* rare = begin; rare < end; ++rare)
      totals[rare->output] += widened(rare->weight) * widened(x[rare->input]);
}

// A unit of `weights` [64][2] and, from `rare` on, those whose exponent is neither zero nor one of the fifteen from
// `lowest` on; returns where the next ones go.
Rare* encode(const bf16* weights, int64_t input, int64_t lowest, uint8_t* unit, Rare* rare) {
  __m512i codes = _mm512_setzero_si512();
  for (int v = 0; v < kVectors; ++v) {
    __m512i w = _mm512_loadu_si512(weights + 32 * v);
    const __m512i exponent = _mm512_and_si512(_mm512_srli_epi16(w, 7), _mm512_set1_epi16(0xff));
    // Below the lowest it wraps around to more than there are codes.
    const __m512i offset = _mm512_sub_epi16(exponent, _mm512_set1_epi16(static_cast<int16_t>(lowest)));
    const __mmask32 beyond = _mm512_cmpge_epu16_mask(offset, _mm512_set1_epi16(kCodes - 1));
    const __mmask32 is_not_zero = _mm512_test_epi16_mask(exponent, exponent), others = is_not_zero & beyond;
    for (uint32_t left = others; left; left &= left - 1) {
      const int i = 32 * v + __builtin_ctz(left);
      *rare++ = {static_cast<uint16_t>((input + i % 2) % kChunk), static_cast<uint16_t>(i / 2), weights[i]};
    }
    w = _mm512_maskz_mov_epi16(~others, w);
    const __m512i code = _mm512_maskz_add_epi16(is_not_zero & ~others, offset, _mm512_set1_epi16(1));
    const __m512i sign = _mm512_and_si512(_mm512_srli_epi16(w, 8), _mm512_set1_epi16(0x80));
    const __m512i fraction = _mm512_and_si512(w, _mm512_set1_epi16(0x7f));
    const __m256i both = _mm512_cvtepi16_epi8(_mm512_or_si512(sign, fraction));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(unit + 32 * v), both);
    codes = _mm512_or_si512(codes, _mm512_slli_epi16(code, 4 * v));
  }
  _mm512_storeu_si512(unit + kPair, codes);
  return rare;
}

}  // namespace

// Weights to be coded are [N][K], K even.
extern "C" {

void capstan_bf16_coded(const Linear* by, const bf16* x, int64_t rows, bf16* out) {
  const Bf16Product product{by, x, rows, out};
  const auto* units = static_cast<const uint8_t*>(by->weights);
  const __m512i exponents = _mm512_loadu_si512(by->scales);
  product.run([&](int64_t block, int64_t chunk, int64_t first, int64_t end, float* totals) {
    const Coded weights{units + (block * by->inputs + first) / 2 * kBytes, exponents, __m512i()};
    add_chunk(product, weights, first, end, totals);
    add_rare(product, block * chunks_of(by->inputs) + chunk, first, totals);
  });
}

// starts [blocks · chunks + 1]: how many rare weights there are before each chunk, and in all.
void capstan_find_rare(const bf16* weights, int64_t outputs, int64_t inputs, int64_t lowest, int64_t* starts) {
  const int64_t chunks = chunks_of(inputs), num = blocks_of(outputs) * chunks;
  starts[0] = 0;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < num; ++i) {
    const int64_t block = i / chunks, first = i % chunks * kChunk, end = std::min(first + kChunk, inputs);
    starts[i + 1] = 0;
    for (int64_t output = block * kOutputs; output < std::min((block + 1) * kOutputs, outputs); ++output) {
      uint16_t found = 0;  // as wide as a weight, or the compiler would widen all of them
      for (int64_t k = first; k < end; ++k) {
        const uint16_t exponent = weights[output * inputs + k] >> 7 & 0xff;
        found += exponent != 0 && static_cast<uint16_t>(exponent - lowest) >= kCodes - 1;
      }
      starts[i + 1] += found;
    }
  }
  for (int64_t i = 0; i < num; ++i) starts[i + 1] += starts[i];
}

// Writes the units, and the rare weights in the order of `starts`.
void capstan_encode(const bf16* weights, int64_t outputs, int64_t inputs, int64_t lowest, const int64_t* starts,
                    uint8_t* units, Rare* rare) {
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < blocks_of(outputs); ++block) {
    const int64_t first = block * kOutputs, num = std::min<int64_t>(kOutputs, outputs - first);
    Rare* next = rare + starts[block * chunks_of(inputs)];
    for (int64_t tile = 0; tile < inputs; tile += kTile) {
      const int64_t width = std::min(kTile, inputs - tile);
      // Rows often lie a multiple of 4 KiB apart, where one evicts the other: each line is read once.
      bf16 rows[kOutputs][kTile] = {}, pair[kOutputs][2];
      for (int64_t i = 0; i < num; ++i)
        std::memcpy(rows[i], weights + (first + i) * inputs + tile, width * sizeof(bf16));
      for (int64_t k = 0; k < width; k += 2) {
        for (int64_t i = 0; i < kOutputs; ++i) std::memcpy(pair[i], rows[i] + k, sizeof pair[i]);
        next = encode(pair[0], tile + k, lowest, units + (block * inputs + tile + k) / 2 * kBytes, next);
      }
    }
  }
}

}  // extern "C"

#endif
