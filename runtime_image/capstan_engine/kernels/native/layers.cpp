// The decoder layers of a step in which every sequence decodes, all of them in one call.
//
// Nothing is computed here: each part is the function that Python would call, on the same numbers, so what comes of it
// is the same to the last bit. The surprising idea: the calls themselves are what a small model waits for. A layer's
// weights have passed through the caches by the time its products are done, and the way back through Python, which is
// short in instructions, has to be fetched from memory again each time.

#include <algorithm>
#include <vector>

#include "blocks.h"
#include "step.h"

struct Layer {
  const Linear *qkv, *output, *gate_up, *down;
  const bf16 *input_norm, *post_attention_norm;
  const bf16 *query_norm, *key_norm;  // null where heads are not normed
  int64_t queries, keys, width;
  int64_t window;  // keys that a query sees, itself included; 0 where it sees all
  float eps, head_eps, scale;
};

namespace {

// Kept from call to call: a step must not wait for the allocator.
struct Scratch {
  std::vector<bf16> delta, normed, heads, mixed, gate_up, gated, cos, sin;
  std::vector<int64_t> slots;
};

template <class Number>
Number* room(std::vector<Number>& numbers, int64_t size) {
  if (numbers.size() < static_cast<size_t>(size)) numbers.resize(size);
  return numbers.data();
}

// Where each sequence's new keys and values go, as capstan_rotate_and_write takes it.
void find_slots(const Decodes& of, int64_t keys, int64_t* slots) {
  for (int64_t i = 0; i < of.num; ++i)
    for (int64_t head = 0; head < 2 * keys; ++head) {
      const int64_t block = of.tables[i][of.positions[i] / of.size] + (head < keys ? 0 : of.num_blocks);
      *slots++ = (block * keys + head % keys) * of.size + of.positions[i] % of.size;
    }
}

}  // namespace

// x [tokens][inputs] is the residual stream before the first layer, and after the last in the end. cos and sin
// [positions][width] are those of all positions, caches those of all layers.
extern "C" void capstan_layers(const Layer* layers, int64_t num_layers, bf16* x, const bf16* cos, const bf16* sin,
                               bf16* const* caches, const Decodes* decodes) {
  static thread_local Scratch kept;
  const int64_t tokens = decodes->num, hidden = layers->qkv->inputs, width = layers->width;
  bf16 *delta = room(kept.delta, tokens * hidden), *normed = room(kept.normed, tokens * hidden);
  bf16 *my_cos = room(kept.cos, tokens * width), *my_sin = room(kept.sin, tokens * width);
  for (int64_t i = 0; i < tokens; ++i) {
    std::copy_n(cos + decodes->positions[i] * width, width, my_cos + i * width);
    std::copy_n(sin + decodes->positions[i] * width, width, my_sin + i * width);
  }
  int64_t* slots = room(kept.slots, tokens * 2 * layers->keys);
  find_slots(*decodes, layers->keys, slots);

  for (const Layer* of = layers; of < layers + num_layers; ++of) {
    const int64_t mixed_width = of->output->inputs, heads_width = of->qkv->outputs, inner = of->down->inputs;
    bf16 *heads = room(kept.heads, tokens * heads_width), *mixed = room(kept.mixed, tokens * mixed_width);
    bf16 *gate_up = room(kept.gate_up, tokens * 2 * inner), *gated = room(kept.gated, tokens * inner);
    bf16* cache = caches[of - layers];

    capstan_norm(x, of == layers ? nullptr : delta, of->input_norm, tokens, hidden, of->eps, normed);
    of->qkv->multiply(of->qkv, normed, tokens, heads);
    capstan_rotate_and_write(heads, tokens, of->queries, of->keys, of->width, my_cos, my_sin, of->query_norm,
                             of->key_norm, of->head_eps, slots, cache);
    capstan_decode(heads, heads_width, of->queries, of->keys, of->width, cache, decodes, of->window, of->scale, mixed);
    of->output->multiply(of->output, mixed, tokens, delta);
    capstan_norm(x, delta, of->post_attention_norm, tokens, hidden, of->eps, normed);
    of->gate_up->multiply(of->gate_up, normed, tokens, gate_up);
    capstan_gate(gate_up, tokens, inner, gated);
    of->down->multiply(of->down, gated, tokens, delta);
  }
  capstan_add(x, delta, tokens * hidden);
}
