// The names of vectors.h for AVX-512 with VNNI; BF16 is used where the compiler may.
#pragma once

using Floats = __m512;
using Ints = __v16si;  // as the intrinsics of VNNI type it: with any other type the compiler copies every sum
using Lanes = __mmask16;

constexpr int kRegisters = 32;

inline __m512i raw(Ints x) { return reinterpret_cast<__m512i>(x); }
inline Ints ints(__m512i x) { return reinterpret_cast<Ints>(x); }

// The lanes of the vector that begins at `first` of `size` numbers.
inline Lanes lanes(int64_t first, int64_t size) {
  return size - first >= 16 ? 0xffff : static_cast<Lanes>((1u << (size - first)) - 1);
}

inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Ints all(int32_t x) { return ints(_mm512_set1_epi32(x)); }

inline Floats widen(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline Floats load(const float* p, Lanes mask, Floats elsewhere) { return _mm512_mask_loadu_ps(elsewhere, mask, p); }
inline Floats load(const bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Floats load(const bf16* p, Lanes mask) { return widen(_mm256_maskz_loadu_epi16(mask, p)); }

inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
inline void store(float* p, Lanes mask, Floats x) { _mm512_mask_storeu_ps(p, mask, x); }

// To the nearest, ties to even, as torch rounds.
inline void store(bf16* p, Lanes mask, Floats x) {
#ifdef __AVX512BF16__
  const __m256i rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
#else
  const __m512i bits = _mm512_castps_si512(x), high = _mm512_srli_epi32(bits, 16);
  const __m512i half = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), _mm512_and_si512(high, _mm512_set1_epi32(1)));
  const __m512i up = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
  // Rounding would carry some NaN over to infinity or zero.
  const __m512i nan = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
  const __m256i rounded = _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), nan));
#endif
  _mm256_mask_storeu_epi16(p, mask, rounded);
}

inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
// Where `x` is no number, so is the result.
inline Floats at_least(Floats least, Floats x) { return _mm512_max_ps(least, x); }
inline Floats at_most(Floats most, Floats x) { return _mm512_min_ps(most, x); }
inline Floats nearest(Floats x) { return _mm512_roundscale_ps(x, 0); }
inline Floats times_power(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }
inline float sum_of(Floats x) { return _mm512_reduce_add_ps(x); }
inline float largest_of(Floats x) { return _mm512_reduce_max_ps(x); }

inline Ints at_least(Ints least, Ints x) { return ints(_mm512_max_epi32(raw(least), raw(x))); }
inline Ints magnitude_bits(Floats x) { return ints(_mm512_castps_si512(x)) & 0x7fffffff; }
inline float largest_float(Ints bits) {
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(raw(bits)))));
}
inline int32_t sum_of(Ints x) { return _mm512_reduce_add_epi32(raw(x)); }
inline Ints to_ints(Floats x) { return ints(_mm512_cvtps_epi32(x)); }
inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(raw(x)); }

inline void store_saturated(int8_t* p, Ints x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(raw(x)));
}
inline void store_saturated(int16_t* p, Ints x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(raw(x)));
}

inline Ints load_ints(const void* p) { return ints(_mm512_loadu_si512(p)); }

// 32 signed bytes to 16 bits each.
inline Ints widen_bytes(const uint8_t* p) {
  return ints(_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}

// The low and the high four bits of each byte.
inline Ints low_halves(Ints x) { return x & 0x0f0f0f0f; }
inline Ints high_halves(Ints x) { return (x >> 4) & 0x0f0f0f0f; }

// Sums of products within each lane: of two signed numbers of 16 bits, of four bytes, unsigned times signed, and of two
// bfloat16 numbers.
inline Ints dot_pairs(Ints sum, Ints a, Ints b) { return ints(_mm512_dpwssd_epi32(raw(sum), raw(a), raw(b))); }
inline Ints dot_quads(Ints sum, Ints a, Ints b) { return ints(_mm512_dpbusd_epi32(raw(sum), raw(a), raw(b))); }
inline Ints dot_small_quads(Ints sum, Ints a, Ints b) { return dot_quads(sum, a, b); }

inline Floats dot_bf16(Floats sum, Ints a, Ints b) {
#ifdef __AVX512BF16__
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#else
  const Ints high = all(static_cast<int32_t>(0xffff0000));
  sum = fma(_mm512_castsi512_ps(raw(a << 16)), _mm512_castsi512_ps(raw(b << 16)), sum);
  return fma(_mm512_castsi512_ps(raw(a & high)), _mm512_castsi512_ps(raw(b & high)), sum);
#endif
}
