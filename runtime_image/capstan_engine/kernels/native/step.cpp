// What a step does between its products, in bfloat16: norms, rotary embedding, the gate, attention of single queries.
//
// Each of these is a handful of torch operations whose dispatch takes longer than their work; here each is one call that
// reads its input once. Everything is computed in float32 and rounded once, where torch's operations round in between.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t kParallelNumbers = 1 << 15;  // below, waking another thread takes longer than the work

float inverse_rms(const bf16* x, int64_t width, float eps) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < width; i += 16) {
    const __m512 v = load(x + i, lanes(i, width));
    sum = _mm512_fmadd_ps(v, v, sum);
  }
  return 1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / static_cast<float>(width) + eps);
}

void norm(const bf16* x, const bf16* weight, int64_t width, float eps, bf16* out) {
  const __m512 by = _mm512_set1_ps(inverse_rms(x, width, eps));
  for (int64_t i = 0; i < width; i += 16) {
    const __mmask16 mask = lanes(i, width);
    store(out + i, mask, _mm512_mul_ps(_mm512_mul_ps(load(x + i, mask), by), load(weight + i, mask)));
  }
}

float dot(const bf16* a, const bf16* b, int64_t width) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < width; i += 32)
    sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_loadu_si512(a + i)),
                           reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + i)));
  return _mm512_reduce_add_ps(sum);
}

// Scores become weights in place; returns the inverse of their sum.
float softmax(float* scores, int64_t num) {
  __m512 most = _mm512_set1_ps(-INFINITY);
  for (int64_t i = 0; i < num; i += 16)
    most = _mm512_max_ps(most, _mm512_mask_loadu_ps(most, lanes(i, num), scores + i));
  const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most));
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < num; i += 16) {
    const __mmask16 mask = lanes(i, num);
    const __m512 e = exponential(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, scores + i), top));
    _mm512_mask_storeu_ps(scores + i, mask, e);
    sum = _mm512_mask_add_ps(sum, mask, sum, e);
  }
  return 1.0f / _mm512_reduce_add_ps(sum);
}

// For up to four heads, whose weights are `stride` apart: the weighted sums of `vectors` times 16 numbers of each value.
template <int heads>
void mix(const float* weights, int64_t stride, const std::vector<const bf16*>& values, int64_t d, int vectors,
         const float* by, bf16* out, int64_t width) {
  __m512 sums[heads][4];
  for (int h = 0; h < heads; ++h)
    for (int v = 0; v < 4; ++v) sums[h][v] = _mm512_setzero_ps();
  const auto add = [&](const int num) {
    for (size_t i = 0; i < values.size(); ++i)
      for (int v = 0; v < num; ++v) {
        const __m512 value = load(values[i] + d + 16 * v);
        for (int h = 0; h < heads; ++h)
          sums[h][v] = _mm512_fmadd_ps(_mm512_set1_ps(weights[h * stride + i]), value, sums[h][v]);
      }
  };
  // With numbers that the compiler knows, so that the sums stay in registers.
  vectors == 4 ? add(4) : add(2);
  for (int h = 0; h < heads; ++h)
    for (int v = 0; v < vectors; ++v)
      store(out + h * width + d + 16 * v, 0xffff, _mm512_mul_ps(sums[h][v], _mm512_set1_ps(by[h])));
}

}  // namespace

extern "C" {

// x [rows][width] += delta, where there is one; out = the norm of x.
void capstan_norm(bf16* x, const bf16* delta, const bf16* weight, int64_t rows, int64_t width, float eps, bf16* out) {
#pragma omp parallel for if (rows * width > kParallelNumbers)
  for (int64_t row = 0; row < rows; ++row) {
    bf16* line = x + row * width;
    if (delta)
      for (int64_t i = 0; i < width; i += 16) {
        const __mmask16 mask = lanes(i, width);
        store(line + i, mask, _mm512_add_ps(load(line + i, mask), load(delta + row * width + i, mask)));
      }
    norm(line, weight, width, eps, out + row * width);
  }
}

// x [rows][2][width] to out [rows][width]: silu of the first half times the second.
void capstan_gate(const bf16* x, int64_t rows, int64_t width, bf16* out) {
#pragma omp parallel for if (rows * width > kParallelNumbers)
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < width; i += 16) {
      const __mmask16 mask = lanes(i, width);
      const __m512 gate = load(x + 2 * row * width + i, mask), up = load(x + (2 * row + 1) * width + i, mask);
      // Minus the gate may exceed what the exponential takes; from -88 on the answer is 0 anyway.
      const __m512 e = exponential(_mm512_min_ps(_mm512_sub_ps(_mm512_setzero_ps(), gate), _mm512_set1_ps(88.0f)));
      const __m512 silu = _mm512_div_ps(gate, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
      store(out + row * width + i, mask, _mm512_mul_ps(silu, up));
    }
}

// heads [tokens][queries + 2 keys][width]: queries and keys are normed, where there are weights, and turned; keys and
// values go to rows slots [tokens][2 keys] of the cache, seen as [.][width].
void capstan_rotate_and_write(bf16* heads, int64_t tokens, int64_t queries, int64_t keys, int64_t width,
                              const bf16* cos, const bf16* sin, const bf16* query_norm, const bf16* key_norm, float eps,
                              const int64_t* slots, bf16* cache) {
  const int64_t half = width / 2, all = queries + 2 * keys;
#pragma omp parallel for if (tokens * all * width > kParallelNumbers)
  for (int64_t token = 0; token < tokens; ++token) {
    const bf16 *c = cos + token * width, *s = sin + token * width;
    for (int64_t head = 0; head < queries + keys; ++head) {
      bf16* x = heads + (token * all + head) * width;
      if (query_norm) norm(x, head < queries ? query_norm : key_norm, width, eps, x);
      for (int64_t i = 0; i < half; i += 16) {
        const __mmask16 mask = lanes(i, half);
        const __m512 low = load(x + i, mask), high = load(x + half + i, mask);
        store(x + i, mask, _mm512_fmadd_ps(high, load(s + i, mask), _mm512_mul_ps(low, load(c + i, mask))));
        store(x + half + i, mask,
              _mm512_fmadd_ps(low, load(s + half + i, mask), _mm512_mul_ps(high, load(c + half + i, mask))));
      }
    }
    for (int64_t head = 0; head < 2 * keys; ++head)
      std::copy_n(heads + (token * all + queries + head) * width, width, cache + slots[token * 2 * keys + head] * width);
  }
}

// Single queries q [num][heads][width], `stride` numbers apart, over a paged cache seen as blocks [.][size][width].
// blocks: for each sequence and key head `blocks_each` rows of keys; as many rows of values begin `values` further on.
// mask [num][keys][blocks_each · size]: 0 where a key is visible, minus infinity elsewhere. Width: a multiple of 32.
void capstan_decode(const bf16* q, int64_t stride, int64_t num, int64_t heads, int64_t keys, int64_t width,
                    const bf16* cache, int64_t size, const int64_t* blocks, int64_t blocks_each, int64_t values,
                    const bf16* mask, float scale, bf16* out) {
  const int64_t shared = heads / keys, length = blocks_each * size;
#pragma omp parallel if (num * heads * length * width > kParallelNumbers)
  {
    // Kept from call to call: a step must not wait for the allocator.
    static thread_local std::vector<float> scores;
    static thread_local std::vector<const bf16*> seen;
#pragma omp for
    for (int64_t pair = 0; pair < num * keys; ++pair) {
      const int64_t sequence = pair / keys, first_head = pair % keys * shared;
      const auto find = [&](const int64_t* table) {
        seen.clear();
        const bf16* hidden = mask + pair * length;
        for (int64_t block = 0; block < blocks_each; ++block) {
          const bf16* at = cache + table[pair * blocks_each + block] * size * width;
          for (int64_t slot = 0; slot < size; ++slot, at += width)
            if (!*hidden++) seen.push_back(at);
        }
        return static_cast<int64_t>(seen.size());
      };
      const int64_t num_seen = find(blocks);
      scores.resize(shared * num_seen);
      const bf16* query = q + sequence * stride + first_head * width;
      for (int64_t i = 0; i < num_seen; ++i)
        for (int64_t head = 0; head < shared; ++head)
          scores[head * num_seen + i] = scale * dot(query + head * width, seen[i], width);
      find(blocks + values);
      for (int64_t head = 0; head < shared; head += 4) {
        const int64_t some = std::min<int64_t>(4, shared - head);
        float* weights = scores.data() + head * num_seen;
        float by[4];
        for (int64_t h = 0; h < some; ++h) by[h] = softmax(weights + h * num_seen, num_seen);
        bf16* to = out + (sequence * heads + first_head + head) * width;
        for (int64_t d = 0; d < width; d += 64) {
          const int vectors = width - d >= 64 ? 4 : 2;
          switch (some) {
            case 1: mix<1>(weights, num_seen, seen, d, vectors, by, to, width); break;
            case 2: mix<2>(weights, num_seen, seen, d, vectors, by, to, width); break;
            case 3: mix<3>(weights, num_seen, seen, d, vectors, by, to, width); break;
            default: mix<4>(weights, num_seen, seen, d, vectors, by, to, width);
          }
        }
      }
    }
  }
}

}  // extern "C"
