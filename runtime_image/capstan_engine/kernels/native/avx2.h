// The names of vectors.h for AVX2 with FMA: each vector is two registers, and masks are counts.
#pragma once

#include <algorithm>
#include <cstring>

struct Floats {
  __m256 low, high;
};

struct Ints {
  __m256i low, high;
};

using Lanes = int;  // so many, from the first on

constexpr int kRegisters = 16;

// The lanes of the vector that begins at `first` of `size` numbers.
inline Lanes lanes(int64_t first, int64_t size) { return static_cast<Lanes>(std::min<int64_t>(16, size - first)); }

inline Floats all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Ints all(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }

inline Floats operator+(Floats a, Floats b) { return {a.low + b.low, a.high + b.high}; }
inline Floats operator-(Floats a, Floats b) { return {a.low - b.low, a.high - b.high}; }
inline Floats operator*(Floats a, Floats b) { return {a.low * b.low, a.high * b.high}; }
inline Floats operator/(Floats a, Floats b) { return {a.low / b.low, a.high / b.high}; }
inline Ints& operator+=(Ints& a, Ints b) {
  return a = {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}

inline __m256 widen(__m128i halves) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

inline Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline Floats load(const float* p, Lanes mask, Floats elsewhere) {
  float numbers[16];
  _mm256_storeu_ps(numbers, elsewhere.low);
  _mm256_storeu_ps(numbers + 8, elsewhere.high);
  std::memcpy(numbers, p, mask * sizeof *p);
  return load(numbers);
}
inline Floats load(const bf16* p) {
  const auto* at = reinterpret_cast<const __m128i*>(p);
  return {widen(_mm_loadu_si128(at)), widen(_mm_loadu_si128(at + 1))};
}
inline Floats load(const bf16* p, Lanes mask) {
  if (mask == 16) return load(p);
  bf16 numbers[16] = {};
  std::memcpy(numbers, p, mask * sizeof *p);
  return load(numbers);
}

inline void store(float* p, Floats x) {
  _mm256_storeu_ps(p, x.low);
  _mm256_storeu_ps(p + 8, x.high);
}
inline void store(float* p, Lanes mask, Floats x) {
  float numbers[16];
  store(numbers, x);
  std::memcpy(p, numbers, mask * sizeof *p);
}

// To the nearest, ties to even, as torch rounds; 32 bits each.
inline __m256i rounded(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x), high = _mm256_srli_epi32(bits, 16);
  const __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), _mm256_and_si256(high, _mm256_set1_epi32(1)));
  const __m256i up = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  // Rounding would carry some NaN over to infinity or zero.
  const __m256i nan = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  return _mm256_blendv_epi8(up, nan, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}

// Two registers become one of half the width, which packs their halves in turn.
inline __m256i in_order(__m256i packed) { return _mm256_permute4x64_epi64(packed, 0xd8); }

inline void store(bf16* p, Lanes mask, Floats x) {
  const __m256i both = in_order(_mm256_packus_epi32(rounded(x.low), rounded(x.high)));
  if (mask == 16) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), both);
  bf16 numbers[16];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(numbers), both);
  std::memcpy(p, numbers, mask * sizeof *p);
}

inline Floats fma(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
// Where `x` is no number, so is the result.
inline Floats at_least(Floats least, Floats x) {
  return {_mm256_max_ps(least.low, x.low), _mm256_max_ps(least.high, x.high)};
}
inline Floats at_most(Floats most, Floats x) {
  return {_mm256_min_ps(most.low, x.low), _mm256_min_ps(most.high, x.high)};
}
inline Floats nearest(Floats x) { return {_mm256_round_ps(x.low, 0), _mm256_round_ps(x.high, 0)}; }

// In two steps, since the whole power may be less than the smallest normal number.
inline __m256 times_power(__m256 x, __m256 n) {
  const __m256i power = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(power, 1), bias = _mm256_set1_epi32(127);
  const __m256i rest = _mm256_sub_epi32(power, half);
  x = x * _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  return x * _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
}
inline Floats times_power(Floats x, Floats n) { return {times_power(x.low, n.low), times_power(x.high, n.high)}; }

inline float sum_of(Floats x) {
  const __m256 both = x.low + x.high;
  __m128 four = _mm256_castps256_ps128(both) + _mm256_extractf128_ps(both, 1);
  four = four + _mm_movehl_ps(four, four);
  return four[0] + four[1];
}
inline float largest_of(Floats x) {
  const __m256 both = _mm256_max_ps(x.low, x.high);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return std::max(four[0], four[1]);
}

inline Ints at_least(Ints least, Ints x) {
  return {_mm256_max_epi32(least.low, x.low), _mm256_max_epi32(least.high, x.high)};
}
inline Ints magnitude_bits(Floats x) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  return {_mm256_and_si256(_mm256_castps_si256(x.low), mask), _mm256_and_si256(_mm256_castps_si256(x.high), mask)};
}
inline float largest_float(Ints bits) {
  const __m256i both = _mm256_max_epi32(bits.low, bits.high);
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(four));
}
inline int32_t sum_of(Ints x) {
  const __m256i both = _mm256_add_epi32(x.low, x.high);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
inline Ints to_ints(Floats x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
inline Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }

inline void store_saturated(int16_t* p, Ints x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), in_order(_mm256_packs_epi32(x.low, x.high)));
}
inline void store_saturated(int8_t* p, Ints x) {
  const __m256i halves = in_order(_mm256_packs_epi32(x.low, x.high));
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

inline Ints load_ints(const void* p) {
  const auto* at = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}

// 32 signed bytes to 16 bits each.
inline Ints widen_bytes(const uint8_t* p) {
  const auto* at = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128(at)), _mm256_cvtepi8_epi16(_mm_loadu_si128(at + 1))};
}

// The low and the high four bits of each byte.
inline Ints low_halves(Ints x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.low, mask), _mm256_and_si256(x.high, mask)};
}
inline Ints high_halves(Ints x) { return low_halves({_mm256_srli_epi32(x.low, 4), _mm256_srli_epi32(x.high, 4)}); }

// Sums of products within each lane: of two signed numbers of 16 bits, of four bytes, unsigned times signed, and of two
// bfloat16 numbers.
inline Ints dot_pairs(Ints sum, Ints a, Ints b) {
  return sum += {_mm256_madd_epi16(a.low, b.low), _mm256_madd_epi16(a.high, b.high)};
}

// Sums of two bytes' products may exceed 16 bits: they are widened first.
inline __m256i quads(__m256i a, __m256i b) {
  const __m256i even = _mm256_and_si256(a, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(a, 8);
  const __m256i even_b = _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8), odd_b = _mm256_srai_epi16(b, 8);
  return _mm256_add_epi32(_mm256_madd_epi16(even, even_b), _mm256_madd_epi16(odd, odd_b));
}
inline Ints dot_quads(Ints sum, Ints a, Ints b) { return sum += {quads(a.low, b.low), quads(a.high, b.high)}; }

// The same for unsigned bytes below 128, whose sums do not.
inline Ints dot_small_quads(Ints sum, Ints a, Ints b) {
  const __m256i ones = _mm256_set1_epi16(1);
  return sum += {_mm256_madd_epi16(_mm256_maddubs_epi16(a.low, b.low), ones),
                 _mm256_madd_epi16(_mm256_maddubs_epi16(a.high, b.high), ones)};
}

inline __m256 dot_bf16(__m256 sum, __m256i a, __m256i b) {
  const __m256i high = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000));
  const auto first = [](__m256i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); };
  const auto second = [high](__m256i x) { return _mm256_castsi256_ps(_mm256_and_si256(x, high)); };
  return _mm256_fmadd_ps(second(a), second(b), _mm256_fmadd_ps(first(a), first(b), sum));
}
inline Floats dot_bf16(Floats sum, Ints a, Ints b) {
  return {dot_bf16(sum.low, a.low, b.low), dot_bf16(sum.high, a.high, b.high)};
}
