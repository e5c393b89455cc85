// bfloat16 numbers in memory, float32 numbers and 32-bit integers in registers, sixteen at a time.
//
// Everything else is written with these names. Two files give them: one for AVX-512, where sixteen numbers are a
// register, and one for AVX2, where they are two.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

using bf16 = uint16_t;

inline float widened(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

#ifdef __AVX512F__
#include "avx512.h"
#else
#include "avx2.h"
#endif

// e to the x for x <= 88, to about two units in the last place: 2 to a whole power times a polynomial (Cephes).
inline Floats exponential(Floats x) {
  x = at_least(all(-104.0f), x);
  const Floats n = nearest(x * all(1.44269504088896341f));
  Floats r = fma(n, all(-0.693359375f), x);
  r = fma(n, all(2.12194440e-4f), r);
  Floats p = all(1.9875691500e-4f);
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = fma(p, r, all(c));
  return times_power(fma(p, r * r, r + all(1.0f)), n);
}

// The largest magnitude of `size` numbers; not finite if one of them is not: integers order all floats of one sign.
inline float largest_magnitude(const bf16* x, int64_t size) {
  Ints most = all(0);
  for (int64_t i = 0; i < size; i += 16) most = at_least(most, magnitude_bits(load(x + i, lanes(i, size))));
  return largest_float(most);
}
