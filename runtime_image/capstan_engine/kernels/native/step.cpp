// What a step does between its products, in bfloat16: norms, rotary embedding, the gate, attention of single queries,
// and the choice of the most likely token.
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

// For up to four heads, whose weights are `stride` apart: the weighted sums of `vectors` times 16 numbers of each value,
// from the one at `d` on. Each value lies `values` numbers after its key.
template <int heads>
void mix(const float* weights, int64_t stride, const std::vector<const bf16*>& keys, int64_t values, int64_t d,
         int vectors, const float* by, bf16* out, int64_t width) {
  Floats sums[heads][4];
  for (int h = 0; h < heads; ++h)
    for (int v = 0; v < 4; ++v) sums[h][v] = all(0.0f);
  const auto add = [&](const int num) {
    for (size_t i = 0; i < keys.size(); ++i)
      for (int v = 0; v < num; ++v) {
        const Floats value = load(keys[i] + values + d + 16 * v);
        for (int h = 0; h < heads; ++h) sums[h][v] = fma(all(weights[h * stride + i]), value, sums[h][v]);
      }
  };
  // With numbers that the compiler knows, so that the sums stay in registers.
  vectors == 4 ? add(4) : add(2);
  for (int h = 0; h < heads; ++h)
    for (int v = 0; v < vectors; ++v) store(out + h * width + d + 16 * v, lanes(0, 16), sums[h][v] * all(by[h]));
}

// x += delta
void add(bf16* x, const bf16* delta, int64_t num) {
  for (int64_t i = 0; i < num; i += 16) {
    const Lanes mask = lanes(i, num);
    store(x + i, mask, load(x + i, mask) + load(delta + i, mask));
  }
}

// The keys that a sequence's query sees.
struct Visible {
  int64_t first, end;

  Visible(const Decodes& of, int64_t sequence, int64_t window)
      : first(0), end(of.positions[sequence] + 1) {
    if (window) first = std::max<int64_t>(0, end - window);
  }
};

}  // namespace

extern "C" {

// x [rows][width] += delta, where there is one; out = the norm of x.
void capstan_norm(bf16* x, const bf16* delta, const bf16* weight, int64_t rows, int64_t width, float eps, bf16* out) {
#pragma omp parallel for if (rows * width > kParallelNumbers)
  for (int64_t row = 0; row < rows; ++row) {
    bf16* line = x + row * width;
    if (delta) add(line, delta + row * width, width);
    norm(line, weight, width, eps, out + row * width);
  }
}

// x [num] += delta.
void capstan_add(bf16* x, const bf16* delta, int64_t num) { add(x, delta, num); }

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

// Single queries q [num][heads][width], `stride` numbers apart, over a paged cache. Width: a multiple of 32.
// A query sees the last `window` keys, its own included, or all where that is 0.
void capstan_decode(const bf16* q, int64_t stride, int64_t heads, int64_t keys, int64_t width, const bf16* cache,
                    const Decodes* of, int64_t window, float scale, bf16* out) {
  const int64_t shared = heads / keys, size = of->size, values = of->num_blocks * keys * size * width;
  int64_t total = 0;
  for (int64_t i = 0; i < of->num; ++i) total += Visible(*of, i, window).end - Visible(*of, i, window).first;
#pragma omp parallel if (total * heads * width > kParallelNumbers)
  {
    // Kept from call to call: a step must not wait for the allocator.
    static thread_local std::vector<float> scores;
    static thread_local std::vector<const bf16*> seen;
    // The longest come first: in turn, so that every thread gets as many long ones as the others.
#pragma omp for schedule(static, 1)
    for (int64_t pair = 0; pair < of->num * keys; ++pair) {
      const int64_t sequence = pair / keys, key = pair % keys, first_head = key * shared;
      const Visible visible(*of, sequence, window);
      seen.clear();
      for (int64_t position = visible.first; position < visible.end;) {
        const int64_t block = of->tables[sequence][position / size], slot = position % size;
        const bf16* at = cache + ((block * keys + key) * size + slot) * width;
        for (const int64_t stop = std::min(visible.end, position - slot + size); position < stop; ++position, at += width)
          seen.push_back(at);
      }
      const int64_t num_seen = visible.end - visible.first;
      scores.resize(shared * num_seen);
      const bf16* query = q + sequence * stride + first_head * width;
      for (int64_t i = 0; i < num_seen; ++i)
        for (int64_t head = 0; head < shared; ++head)
          scores[head * num_seen + i] = scale * dot(query + head * width, seen[i], width);
      for (int64_t head = 0; head < shared; head += 4) {
        const int64_t some = std::min<int64_t>(4, shared - head);
        float* weights = scores.data() + head * num_seen;
        float by[4];
        for (int64_t h = 0; h < some; ++h) by[h] = softmax(weights + h * num_seen, num_seen);
        bf16* to = out + (sequence * heads + first_head + head) * width;
        for (int64_t d = 0; d < width; d += 64) {
          const int vectors = width - d >= 64 ? 4 : 2;
          switch (some) {
            case 1: mix<1>(weights, num_seen, seen, values, d, vectors, by, to, width); break;
            case 2: mix<2>(weights, num_seen, seen, values, d, vectors, by, to, width); break;
            case 3: mix<3>(weights, num_seen, seen, values, d, vectors, by, to, width); break;
            default: mix<4>(weights, num_seen, seen, values, d, vectors, by, to, width);
          }
        }
      }
    }
  }
}

// tokens [rows]: the first of the largest of each row's logits [rows][width]; -1 where that is no number or infinite,
// and a NaN counts as the largest.
void capstan_most_likely(const bf16* logits, int64_t rows, int64_t width, int64_t* tokens) {
  constexpr int kPiece = 1024;
  constexpr int16_t kInfinity = 0x7f80;
  // Integers that are in the order of the numbers, zeros of both signs being equal.
  const auto rank = [](bf16 x) { return static_cast<int16_t>(x & 0x8000 ? -(x & 0x7fff) : x); };
  for (int64_t row = 0; row < rows; ++row) {
    const bf16* of = logits + row * width;
    int16_t most = INT16_MIN, magnitude = 0;
    int64_t place = 0;
    for (int64_t first = 0; first < width; first += kPiece) {
      const int64_t end = std::min(width, first + kPiece);
      int16_t here = INT16_MIN;
      for (int64_t i = first; i < end; ++i) {
        here = std::max(here, rank(of[i]));
        magnitude = std::max<int16_t>(magnitude, of[i] & 0x7fff);
      }
      if (here > most) most = here, place = first;
    }
    while (place < width && rank(of[place]) != most) ++place;
    const bool is_finite = most < kInfinity && most > -kInfinity && magnitude <= kInfinity;
    tokens[row] = is_finite ? place : -1;
  }
}

}  // extern "C"
