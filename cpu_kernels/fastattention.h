/* The C interface of the CPU kernels, and, word for word, the cffi definition.
 *
 * _build_ffi.py drops the preprocessor lines and hands the rest to cffi, so what Python sees and
 * what the compiler checks cannot drift apart. The mathematics is reference/standard.py's.
 *
 * All strides count elements. The last axis of q, k, v and out is contiguous. Nothing here is
 * validated again: fastattention/validate.py is the only gate.
 */
#ifndef FASTATTENTION_H
#define FASTATTENTION_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

enum fa_dtype { FA_FLOAT32, FA_FLOAT16, FA_BFLOAT16, FA_INT8 }; /* FA_INT8: of k and v only, with scales */
enum fa_mask_kind { FA_MASK_NONE, FA_MASK_BOOL, FA_MASK_FLOAT32 };
enum fa_isa {
  FA_ISA_BASELINE,
  FA_ISA_AVX2,
  FA_ISA_AVX512,
  FA_ISA_AVX512_VNNI,
  FA_ISA_AVX512_BF16,
  FA_ISA_AMX,
  FA_ISA_COUNT
};
enum fa_status { FA_OK, FA_NO_MEMORY, FA_NO_ISA, FA_NOT_FINITE, FA_STOPPED };

typedef struct fa_problem {
  /* Sizes. With cu_seqlens, batch is the number of sequences, q_len and k_len the longest of them. */
  int64_t batch, q_heads, kv_heads, q_len, k_len, head_dim, v_dim;

  /* q (B, Hq, Sq, D); k (B, Hkv, Sk, D); v (B, Hkv, Sk, Dv); out (B, Hq, Sq, Dv); lse (B, Hq, Sq) or NULL. */
  const void *q, *k, *v;
  void *out;
  float *lse;
  int64_t q_strides[3], k_strides[3], v_strides[3], out_strides[3], lse_strides[3]; /* batch, head, row */
  int32_t q_dtype;  /* of q and out */
  int32_t kv_dtype; /* of k and v */

  /* With FA_INT8: row j of k is k_scales[j] times its integers, one scale a token and KV head; likewise v.
   * NULL otherwise. */
  const float *k_scales, *v_scales;
  int64_t k_scale_strides[3], v_scale_strides[3]; /* batch, head, row */

  /* Paged k and v, and their scales: NULL, or row b lists the pages of sequence b, block_table_stride entries
   * apart. Key j lies in page block_table[b][j / page_size], row j % page_size; the first stride of k, v and
   * of their scales then goes from page to page: k (pages, Hkv, page_size, D). kv_lengths are given. */
  const int32_t *block_table;
  int64_t block_table_stride, page_size;

  /* NULL, or batch + 1 row numbers each: sequence b is rows [cu[b], cu[b+1]) of the packed arrays. */
  const int64_t *cu_seqlens_q, *cu_seqlens_k;

  const int64_t *kv_lengths; /* (B) or NULL: all k_len keys */
  const int64_t *q_offsets; /* (B) or NULL: bottom-right aligned, kv_length - q_len */
  int64_t window_left, window_right; /* -1: unbounded; causal is window_right = 0 */

  const void *mask; /* broadcast axes have stride 0 */
  int64_t mask_strides[4]; /* batch, head, query, key */
  int32_t mask_kind;

  const float *alibi_slopes; /* per head or NULL */
  int64_t alibi_batch_stride; /* 0: the same slopes for every sequence of the batch */
  const float *sinks; /* (Hq) or NULL */
  float scale;
  float softcap; /* 0: none */

  int32_t num_threads; /* at least 1 */
  int32_t isa; /* enum fa_isa: kernels of this set, or of an older one where those are no use (fa_plan) */
} fa_problem;

int fa_attention(const fa_problem *problem);

/* Lets long calls be stopped. While a call that `thread` (a pthread_t) has made goes on, that thread asks
 * `go_on` some twenty times a second. Where the answer is 0, the call returns FA_STOPPED soon after, and what
 * lies in its outputs means nothing. NULL: nobody is asked. Not to be set while a call runs. */
void fa_set_watch(int32_t (*go_on)(void), uintptr_t thread);

/* What fa_attention would do with a problem: which kernels, which tiles, how much memory. */
typedef struct fa_plan {
  int32_t isa; /* whose kernels run */
  int32_t decode; /* 1: few rows, bound by reading k and v; 0: many rows, bound by arithmetic */
  int32_t threads; /* that will work; at most num_threads */
  int32_t lanes, sub_rows; /* floats of a vector; query rows of a register block */
  int64_t item_rows,
      key_tile; /* query rows (heads of a KV head times queries) and keys worked on at a time */
  int64_t item_heads; /* neighbouring KV heads of an item: several in decode over pages */
  int64_t key_split, splits; /* keys of an item at most; parts that a row's keys are split into */
  int64_t items;
  int64_t thread_bytes, shared_bytes; /* memory beyond inputs and outputs: of each thread, of all together */
  int64_t l1_bytes, l2_bytes; /* cache sizes the tiles were chosen for */
} fa_plan;
int fa_explain(const fa_problem *problem, fa_plan *plan);

/* Rows of x as integers with a scale each: reference/quantize.py. x has `shape` (4 axes, rows last) and
 * `strides` of the first three; integers and scales lie without gaps. FA_NOT_FINITE: x holds inf or NaN, and
 * what was written means nothing. */
int fa_quantize(const float *x, const int64_t *shape, const int64_t *strides, int8_t *integers,
                float *scales);

/* A token's work on a layer whose cache lies in host memory: new rows go behind the others, then attention
 * over rows [first, length) of every sequence. One call that needs nothing else, so that a GPU's driver can
 * make it. */
typedef struct fa_host_step {
  fa_problem problem; /* k, v and their scales begin at row 0; k_len is not read. Not paged, not packed. */
  int64_t first, length; /* the last q_len rows are new: they are written first */
  const void *new_k, *new_v; /* (B, Hkv, q_len, D) and Dv, of q_dtype, rounded to kv_dtype */
  int64_t new_k_strides[3], new_v_strides[3]; /* batch, head, row */
  int32_t
      *failed; /* NULL, or shared by steps: where it is not 0, a step does nothing; one that fails sets it */
  int32_t status; /* of the last run: enum fa_status */
  double seconds; /* likewise: how long it took; 0 where it did nothing */
} fa_host_step;
void fa_host_step_run(void *step);
void *fa_host_step_function(void); /* its address */

/* Whether this build has the kernels of `isa` and this machine can run them. */
int fa_isa_available(int isa);
/* The available set that is fastest here, by measurement where that is open. */
int fa_isa_default(void);
/* Whether the dot product of bfloat16 (AVX512-BF16) does more multiply-adds a second here than float32's
 * instruction: twice as many on Zen 4 and 5, half as many on the Intel servers tried. Measured once, in half
 * a millisecond; 0 where the machine has no such instruction. */
int fa_bf16_dot_is_faster(void);
const char *fa_isa_name(int isa);
const char *fa_compiler(void);
int fa_max_threads(void);
int64_t fa_cache_bytes(int level); /* 1, 2, 3; 0 where the system does not say */

/* Probes: what one core or the machine can do at best, for the benchmark's ratios. */
double fa_probe_fma_gflops(int isa, double seconds); /* fp32 multiply-add, one thread */
double fa_probe_bf16_dot_gflops(double seconds); /* 0 where the machine has no such instruction */
double fa_probe_int8_dot_gops(double seconds); /* likewise */
double fa_probe_amx_bf16_gflops(double seconds); /* likewise */
double fa_probe_amx_int8_gops(double seconds); /* likewise */
/* Mean rate of `repeats` passes over the buffer in one of several ways, 0 <= way < FA_READ_WAYS: numbers of
 * places read at once and distances of prefetching. 0 where there is no such way, or less than a unit to
 * read for each thread. */
enum { FA_READ_WAYS = 9 };
double fa_probe_read_gbps(const void *buffer, int64_t bytes, int num_threads, int way, int repeats);

#ifdef __cplusplus
}
#endif
#endif
