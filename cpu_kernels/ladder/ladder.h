/* The one interface of all steps of the ladder, and, word for word, the cffi definition.
 *
 * The ladder is to be read: float32, contiguous, nothing but the plain softmax. Nothing here is validated;
 * __init__.py does that.
 */
#ifndef LADDER_H
#define LADDER_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct ladder_problem {
  int64_t heads, queries, keys;
  int64_t head_dim; /* a multiple of 16, at most 256 */
  const float *q;   /* (heads, queries, head_dim) */
  const float *k;   /* (heads, keys, head_dim) */
  const float *v;   /* (heads, keys, head_dim) */
  float *out;       /* (heads, queries, head_dim) */
  float *scores;    /* room for one row of scores: `keys` floats. Only the first steps need it */
  float scale;
  int32_t causal;   /* query i sees the keys j <= i + keys - queries, at least one; 0: it sees all */
  int32_t threads;  /* that a step may use; most use one */
} ladder_problem;

int ladder_steps(void);
const char *ladder_name(int step); /* of its file, without the ending; NULL: no such step */
const char *ladder_idea(int step);

/* Run one step, compiled for `isa` (enum fa_isa; baseline, avx2 or avx512). 0, or 1: not in this build. */
int ladder_attention(int step, int isa, const ladder_problem *problem);

#ifdef __cplusplus
}
#endif
#endif
