// What a step does between its products: for those who call it from C++. Arguments are explained where it is done.
#pragma once

#include "vectors.h"

// The single queries of a step, which are its first rows, and where their keys are.
struct Decodes {
  int64_t num;
  const int64_t* positions;      // [num]
  const int64_t* const* tables;  // [num]: of each sequence, the blocks of its keys
  int64_t num_blocks, size;      // of a layer's cache [2][num_blocks][keys][size][width]: keys, then values
};

extern "C" {

void capstan_norm(bf16* x, const bf16* delta, const bf16* weight, int64_t rows, int64_t width, float eps, bf16* out);
void capstan_add(bf16* x, const bf16* delta, int64_t num);
void capstan_gate(const bf16* x, int64_t rows, int64_t width, bf16* out);
void capstan_rotate_and_write(bf16* heads, int64_t tokens, int64_t queries, int64_t keys, int64_t width,
                              const bf16* cos, const bf16* sin, const bf16* query_norm, const bf16* key_norm, float eps,
                              const int64_t* slots, bf16* cache);
void capstan_decode(const bf16* q, int64_t stride, int64_t heads, int64_t keys, int64_t width, const bf16* cache,
                    const Decodes* of, int64_t window, float scale, bf16* out);

}  // extern "C"
