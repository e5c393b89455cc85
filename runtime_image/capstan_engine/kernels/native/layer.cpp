// One decoder layer of a step in which every sequence decodes, in one call.
//
// Nothing is computed here: each part is the function that Python would call, on the same numbers, so what comes of it
// is the same to the last bit. The surprising idea: the calls themselves are what a small model waits for. A layer's
// weights have passed through the caches by the time its products are done, and the way back through Python, which is
// short in instructions, has to be fetched from memory again each time.

#include <vector>

#include "blocks.h"
#include "step.h"

struct Layer {
  const Linear *qkv, *output, *gate_up, *down;
  const bf16 *input_norm, *post_attention_norm;
  const bf16 *query_norm, *key_norm;  // null where heads are not normed
  int64_t queries, keys, width;
  float eps, head_eps, scale;
};

// Sequences of similar length, as capstan_decode takes them, from row `first` of the step on.
struct Sequences {
  int64_t first, num;
  const int64_t* blocks;
  int64_t blocks_each, values;
  const bf16* mask;
};

namespace {

// Kept from call to call: a step must not wait for the allocator.
struct Scratch {
  std::vector<bf16> normed, heads, mixed, gate_up, gated;
};

}  // namespace

// x [tokens][inputs] is the residual stream, to which `delta` of the same shape is added first if `has_delta`; what the
// layer adds to it at its end is left in `delta`. The other arguments are those of the parts.
extern "C" void capstan_layer(const Layer* of, bf16* x, bf16* delta, int64_t has_delta, int64_t tokens, const bf16* cos,
                              const bf16* sin, const int64_t* slots, bf16* cache, int64_t size,
                              const Sequences* groups, int64_t num_groups) {
  static thread_local Scratch kept;
  const auto room = [tokens](std::vector<bf16>& numbers, int64_t width) {
    if (numbers.size() < static_cast<size_t>(tokens * width)) numbers.resize(tokens * width);
    return numbers.data();
  };
  const int64_t hidden = of->qkv->inputs, mixed_width = of->output->inputs, heads_width = of->qkv->outputs;
  const int64_t inner = of->down->inputs;
  bf16 *normed = room(kept.normed, hidden), *heads = room(kept.heads, heads_width);
  bf16 *mixed = room(kept.mixed, mixed_width), *gate_up = room(kept.gate_up, 2 * inner);
  bf16* gated = room(kept.gated, inner);

  capstan_norm(x, has_delta ? delta : nullptr, of->input_norm, tokens, hidden, of->eps, normed);
  of->qkv->multiply(of->qkv, normed, tokens, heads);
  capstan_rotate_and_write(heads, tokens, of->queries, of->keys, of->width, cos, sin, of->query_norm, of->key_norm,
                           of->head_eps, slots, cache);
  for (const Sequences* group = groups; group < groups + num_groups; ++group)
    capstan_decode(heads + group->first * heads_width, heads_width, group->num, of->queries, of->keys, of->width, cache,
                   size, group->blocks, group->blocks_each, group->values, group->mask, of->scale,
                   mixed + group->first * mixed_width);
  of->output->multiply(of->output, mixed, tokens, delta);
  capstan_norm(x, delta, of->post_attention_norm, tokens, hidden, of->eps, normed);
  of->gate_up->multiply(of->gate_up, normed, tokens, gate_up);
  capstan_gate(gate_up, tokens, inner, gated);
  of->down->multiply(of->down, gated, tokens, delta);
}
