// bfloat16 numbers in memory, float32 numbers in registers, sixteen at a time.
#pragma once

#include <immintrin.h>

#include <cstdint>

using bf16 = uint16_t;

inline __m512 widen(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline __m512 load(const bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

inline __m512 load(const bf16* p, __mmask16 mask) { return widen(_mm256_maskz_loadu_epi16(mask, p)); }

// To the nearest, ties to even, as torch rounds.
inline void store(bf16* p, __mmask16 mask, __m512 x) {
  _mm256_mask_storeu_epi16(p, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

// The lanes of the vector that begins at `first` of `size` numbers.
inline __mmask16 lanes(int64_t first, int64_t size) {
  return size - first >= 16 ? 0xffff : static_cast<__mmask16>((1u << (size - first)) - 1);
}

// e to the x for x <= 88, to about two units in the last place: 2 to a whole power times a polynomial (Cephes).
inline __m512 exponential(__m512 x) {
  // In this order: the second operand is what comes of a NaN.
  x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}
