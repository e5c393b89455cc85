// What a step does between its products, in bfloat16: norms, rotary embedding, the gate, attention of single queries.
//
// Each of these is a handful of torch operations whose dispatch takes longer than their work; here each is one call that
// reads its input once. Everything is computed in float32 and rounded once, where torch's operations round in between.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <vector>

#include "step.h"
#include "vectors.h"

namespace {

constexpr int64_t kParallelNumbers = 1 << 15;  // below, waking another thread takes longer than the work

float inverse_rms(const bf16* x, int64_t width, float eps) {
  Floats sum = all(0.0f);
  for (int64_t i = 0; i < width; i += 16) {
    const Floats v = load(x + i, lanes(i, width));
    sum = fma(v, v, sum);
  }
  return 1.0f / std::sqrt(sum_of(sum) / static_cast<float>(width) + eps);
}

void norm(const bf16* x, const bf16* weight, int64_t width, float eps, bf16* out) {
  const Floats by = all(inverse_rms(x, width, eps));
  for (int64_t i = 0; i < width; i += 16) {
    const Lanes mask = lanes(i, width);
    store(out + i, mask, load(x + i, mask) * by * load(weight + i, mask));
  }
}

float dot(const bf16* a, const bf16* b, int64_t width) {
  Floats sum = all(0.0f);
  for (int64_t i = 0; i < width; i += 32) sum = dot_bf16(sum, load_ints(a + i), load_ints(b + i));
  return sum_of(sum);
}

// Scores become weights in place; returns the inverse of their sum.
float softmax(float* scores, int64_t num) {
  const Floats none = all(-INFINITY);
  Floats most = none;
  for (int64_t i = 0; i < num; i += 16) most = at_least(most, load(scores + i, lanes(i, num), none));
  const Floats top = all(largest_of(most));
  Floats sum = all(0.0f);
  for (int64_t i = 0; i < num; i += 16) {
    const Lanes mask = lanes(i, num);
    const Floats e = exponential(load(scores + i, mask, none) - top);
    store(scores + i, mask, e);
    sum = sum + e;
  }
  return 1.0f / sum_of(sum);
}

// For up to four heads, whose weights are `stride` apart: the weighted sums of `vectors` times 16 numbers of each value.
template <int heads>
void mix(const float* weights, int64_t stride, const std::vector<const bf16*>& values, int64_t d, int vectors,
         const float* by, bf16* out, int64_t width) {
  Floats sums[heads][4];
  for (int h = 0; h < heads; ++h)
    for (int v = 0; v < 4; ++v) sums[h][v] = all(0.0f);
  const auto add = [&](const int num) {
    for (size_t i = 0; i < values.size(); ++i)
      for (int v = 0; v < num; ++v) {
        const Floats value = load(values[i] + d + 16 * v);
        for (int h = 0; h < heads; ++h) sums[h][v] = fma(all(weights[h * stride + i]), value, sums[h][v]);
      }
  };
  // With numbers that the compiler knows, so that the sums stay in registers.
  vectors == 4 ? add(4) : add(2);
  for (int h = 0; h < heads; ++h)
    for (int v = 0; v < vectors; ++v) store(out + h * width + d + 16 * v, lanes(0, 16), sums[h][v] * all(by[h]));
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
        const Lanes mask = lanes(i, width);
        store(line + i, mask, load(line + i, mask) + load(delta + row * width + i, mask));
      }
    norm(line, weight, width, eps, out + row * width);
  }
}

// x [rows][2][width] to out [rows][width]: silu of the first half times the second.
void capstan_gate(const bf16* x, int64_t rows, int64_t width, bf16* out) {
#pragma omp parallel for if (rows * width > kParallelNumbers)
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < width; i += 16) {
      const Lanes mask = lanes(i, width);
      const Floats gate = load(x + 2 * row * width + i, mask), up = load(x + (2 * row + 1) * width + i, mask);
      // Minus the gate may exceed what the exponential takes; from -88 on the answer is 0 anyway.
      const Floats e = exponential(at_most(all(88.0f), all(0.0f) - gate));
      store(out + row * width + i, mask, gate / (all(1.0f) + e) * up);
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
        const Lanes mask = lanes(i, half);
        const Floats low = load(x + i, mask), high = load(x + half + i, mask);
        store(x + i, mask, fma(high, load(s + i, mask), low * load(c + i, mask)));
        store(x + half + i, mask, fma(low, load(s + half + i, mask), high * load(c + half + i, mask)));
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
