// What the steps share: how a step is declared, where a head begins, which keys a query sees.
//
// Each step is a file that compiles alone, for whatever the flags say:
//   g++ -std=c++17 -O3 -march=native -S 00_naive.cpp
// and defines ladder_attention_00. The package compiles it once for each instruction set, each under a name
// of its own. All else has internal linkage, so that code for a newer machine never stands in for older code.
#pragma once
#include <cmath>
#include <cstdint>

#include "ladder.h"

#define LADDER_PASTE(name, isa) name##_##isa
#define LADDER_NAME(name, isa) LADDER_PASTE(name, isa)
#ifdef LADDER_ISA
#define LADDER_SYMBOL(name) LADDER_NAME(name, LADDER_ISA)
#else
#define LADDER_SYMBOL(name) name
#endif
#define LADDER_STEP(number) extern "C" void LADDER_SYMBOL(ladder_attention_##number)(const ladder_problem &p)

namespace {

struct Head {
  const float *q, *k, *v;
  float *out;
};

inline Head head_of(const ladder_problem &p, int64_t h) {
  const int64_t rows = h * p.queries * p.head_dim, keys = h * p.keys * p.head_dim;
  return {p.q + rows, p.k + keys, p.v + keys, p.out + rows};
}

// Query i sees the keys j < visible(p, i).
inline int64_t visible(const ladder_problem &p, int64_t i) {
  return p.causal ? i + p.keys - p.queries + 1 : p.keys;
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace
