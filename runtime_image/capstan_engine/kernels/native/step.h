// What a step does between its products: for those who call it from C++. Arguments are explained where it is done.
#pragma once

#include "vectors.h"

extern "C" {

void capstan_norm(bf16* x, const bf16* delta, const bf16* weight, int64_t rows, int64_t width, float eps, bf16* out);
void capstan_gate(const bf16* x, int64_t rows, int64_t width, bf16* out);
void capstan_rotate_and_write(bf16* heads, int64_t tokens, int64_t queries, int64_t keys, int64_t width,
                              const bf16* cos, const bf16* sin, const bf16* query_norm, const bf16* key_norm, float eps,
                              const int64_t* slots, bf16* cache);
void capstan_decode(const bf16* q, int64_t stride, int64_t num, int64_t heads, int64_t keys, int64_t width,
                    const bf16* cache, int64_t size, const int64_t* blocks, int64_t blocks_each, int64_t values,
                    const bf16* mask, float scale, bf16* out);

}  // extern "C"
