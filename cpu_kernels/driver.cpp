// From one problem to items, threads and memory. Compiled once, for any machine; the work is in the ISA
// libraries.
#include <omp.h>
#include <pthread.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "fastattention.h"
#include "kernels.hpp"
#include "plan.hpp"

namespace {

using fa::Item;
using fa::Kernels;
using fa::Sequence;
using fa::Tiles;

struct Run {
  const fa_problem *problem;
  const Kernels *kernels;
  Tiles tiles;
  Sequence *sequences;
  Item *items; /* sorted, longest first */
  Item *groups; /* with splits: one entry for each set of rows whose parts are merged */
  int64_t item_count, group_count, splits, part_floats;
  fa::Watch *watch; /* NULL: nobody can stop it */
  char *workspaces;
  size_t workspace_bytes;
  int threads;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t element_size(int32_t dtype) { return dtype == FA_FLOAT32 ? 4 : dtype == FA_INT8 ? 1 : 2; }

Sequence sequence_of(const fa_problem &p, int64_t b) {
  Sequence s = {};
  const int64_t q_size = element_size(p.q_dtype), kv_size = element_size(p.kv_dtype);
  int64_t q_row = 0, k_row = 0;
  s.batch = static_cast<int32_t>(b);
  s.q_len = p.q_len;
  s.kv_length = p.k_len;
  if (p.cu_seqlens_q) {
    q_row = p.cu_seqlens_q[b];
    k_row = p.cu_seqlens_k[b];
    s.q_len = p.cu_seqlens_q[b + 1] - q_row;
    s.kv_length = p.cu_seqlens_k[b + 1] - k_row;
  }
  if (p.kv_lengths) s.kv_length = p.kv_lengths[b];
  s.q_offset = p.q_offsets ? p.q_offsets[b] : s.kv_length - s.q_len;
  s.q = static_cast<const char *>(p.q) + (b * p.q_strides[0] + q_row * p.q_strides[2]) * q_size;
  if (p.block_table) s.block_table = p.block_table + b * p.block_table_stride;
  const int64_t first = p.block_table ? 0 : b;  // a page's place does not depend on the sequence
  s.k = static_cast<const char *>(p.k) + (first * p.k_strides[0] + k_row * p.k_strides[2]) * kv_size;
  s.v = static_cast<const char *>(p.v) + (first * p.v_strides[0] + k_row * p.v_strides[2]) * kv_size;
  if (p.k_scales) {
    s.k_scales = p.k_scales + first * p.k_scale_strides[0] + k_row * p.k_scale_strides[2];
    s.v_scales = p.v_scales + first * p.v_scale_strides[0] + k_row * p.v_scale_strides[2];
  }
  s.out = static_cast<char *>(p.out) + (b * p.out_strides[0] + q_row * p.out_strides[2]) * q_size;
  s.lse = p.lse ? p.lse + b * p.lse_strides[0] + q_row * p.lse_strides[2] : nullptr;
  return s;
}

int64_t work_of(const Item &item) { return item.kv_heads * item.rows * (item.key_end - item.key_begin); }

// Keys that the rows of an item can see at all. Positions grow with the row, so the ends come from its ends.
void clip_keys(const fa_problem &p, const Sequence &s, Item &item) {
  const int64_t group = p.q_heads / p.kv_heads;
  const int64_t first = s.q_offset + item.row_begin / group;
  const int64_t last = s.q_offset + (item.row_begin + item.rows - 1) / group;
  if (p.window_left >= 0) item.key_begin = std::max(item.key_begin, first - p.window_left);
  if (p.window_right >= 0) item.key_end = std::min(item.key_end, last + p.window_right + 1);
  if (item.key_end < item.key_begin) item.key_begin = item.key_end = 0;
}

void make_items(Run &run, float *partials) {
  const fa_problem &p = *run.problem;
  const int64_t group = p.q_heads / p.kv_heads;
  int64_t item_count = 0, group_count = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const Sequence &s = run.sequences[b];
    const int64_t rows = group * s.q_len, blocks = ceil_div(rows, run.tiles.item_rows);
    // Late rows first: under causal they see the most keys, and the sort below has nothing left to do.
    for (int64_t block = blocks - 1; block >= 0; --block) {
      for (int64_t head = 0; head < p.kv_heads; head += run.tiles.item_heads) {
        Item item = {};
        item.sequence = static_cast<int32_t>(b);
        item.kv_head = static_cast<int32_t>(head);
        item.kv_heads = static_cast<int32_t>(std::min(run.tiles.item_heads, p.kv_heads - head));
        item.row_begin = block * run.tiles.item_rows;
        item.rows = std::min(run.tiles.item_rows, rows - item.row_begin);
        item.watch = run.watch;
        if (run.splits > 1) {
          item.partial = partials + item_count * run.part_floats;
          for (int64_t h = 0; h < item.kv_heads; ++h) {
            Item &one = run.groups[group_count++] = item;
            one.kv_head += static_cast<int32_t>(h);
            one.kv_heads = 1;
            one.partial += h * item.rows * (p.v_dim + 1);
          }
        }
        for (int64_t split = 0; split < run.splits; ++split) {
          Item part = item;
          part.key_begin = std::min(split * run.tiles.key_split, s.kv_length);
          part.key_end = std::min(part.key_begin + run.tiles.key_split, s.kv_length);
          if (run.splits > 1) part.partial = item.partial + split * run.part_floats;
          clip_keys(p, s, part);
          run.items[item_count++] = part;
        }
      }
    }
  }
  const auto longer = [](const Item &a, const Item &b) { return work_of(a) > work_of(b); };
  if (!std::is_sorted(run.items, run.items + item_count, longer))
    std::sort(run.items, run.items + item_count, longer);
}

void run_item(const Run &run, int64_t i, void *workspace) {
  const Item &item = run.items[i];
  const auto kernel = run.tiles.decode ? run.kernels->decode : run.kernels->prefill;
  kernel(*run.problem, run.sequences[item.sequence], item, run.tiles, workspace);
}

void merge_group(const Run &run, int64_t i, void *workspace) {
  const Item &item = run.groups[i];
  run.kernels->merge(*run.problem, run.sequences[item.sequence], item, run.splits, run.part_floats,
                     workspace);
}

// Whether to take one more item; asks first, where it is time to.
bool goes_on(const Run &run) {
  if (!run.watch) return true;
  if (fa::is_due(*run.watch)) fa::ask(*run.watch);
  return !fa::is_stopped(*run.watch);
}

// A caller of a long call goes on asking while others have items left: an item may take seconds.
void wait_for_items(const Run &run, const int64_t &left) {
  constexpr timespec PAUSE = {0, 100'000};
  while (__atomic_load_n(&left, __ATOMIC_RELAXED) > 0) {
    goes_on(run);
    nanosleep(&PAUSE, nullptr);
  }
}

void run_parallel(const Run &run) {
  if (run.threads == 1) {
    for (int64_t i = 0; i < run.item_count && goes_on(run); ++i) run_item(run, i, run.workspaces);
    for (int64_t i = 0; i < run.group_count && goes_on(run); ++i) merge_group(run, i, run.workspaces);
    return;
  }
  int64_t left = run.item_count;
#pragma omp parallel num_threads(run.threads)
  {
    const int number = omp_get_thread_num();
    void *const workspace = run.workspaces + run.workspace_bytes * static_cast<size_t>(number);
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t i = 0; i < run.item_count; ++i) {
      if (goes_on(run)) run_item(run, i, workspace);
      if (run.watch) __atomic_fetch_sub(&left, 1, __ATOMIC_RELAXED);
    }
    if (number == 0 && run.watch && fa::was_asked(*run.watch)) wait_for_items(run, left);
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < run.group_count; ++i)
      if (goes_on(run)) merge_group(run, i, workspace);
  }
}

// libgomp keeps a team of threads for each thread that ever opened a parallel region. After fork() the
// child's only thread still holds its parent's team, whose threads do not exist there, and a region would
// wait for them forever. A new thread has no team yet, so in a forked child the region is opened from one.
thread_local bool team_lost = false;

void mark_team_lost() { team_lost = true; }

__attribute__((constructor)) void watch_forks() { pthread_atfork(nullptr, nullptr, mark_team_lost); }

void *run_in_thread(void *run) {
  run_parallel(*static_cast<const Run *>(run));
  return nullptr;
}

// The caller asks meanwhile: the new thread is not the one that is watched.
void wait_for(pthread_t thread, const Run &run) {
  while (run.watch) {
    timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 10'000'000;
    until.tv_sec += until.tv_nsec / 1'000'000'000;
    until.tv_nsec %= 1'000'000'000;
    if (pthread_timedjoin_np(thread, nullptr, &until) == 0) return;
    goes_on(run);
  }
  pthread_join(thread, nullptr);
}

int execute(Run &run) {
  if (run.threads > 1 && team_lost) {
    pthread_t thread;
    if (pthread_create(&thread, nullptr, run_in_thread, &run) != 0) return FA_NO_MEMORY;
    wait_for(thread, run);
  } else {
    run_parallel(run);
  }
  return run.watch && fa::is_stopped(*run.watch) ? FA_STOPPED : FA_OK;
}

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Bytes of one allocation, in this order; then come the threads' workspaces.
struct Memory {
  size_t sequences, items, groups, partials;
  size_t shared() const { return sequences + items + groups + partials; }
};

// Everything about a run that follows from the problem's sizes. False: the kernels asked for are not here.
bool plan_run(const fa_problem &p, Run &run, Memory &memory) {
  run.problem = &p;
  run.kernels = fa::choose_kernels(p);
  if (!run.kernels) return false;
  run.tiles = fa::plan_tiles(p, *run.kernels);
  run.splits = ceil_div(std::max<int64_t>(p.k_len, 1), run.tiles.key_split);
  run.part_floats = run.tiles.item_heads * run.tiles.item_rows * (p.v_dim + 1);
  run.workspace_bytes = aligned(run.kernels->workspace_bytes(p, run.tiles));

  int64_t blocks = 0;  // of rows
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t q_len = p.cu_seqlens_q ? p.cu_seqlens_q[b + 1] - p.cu_seqlens_q[b] : p.q_len;
    blocks += ceil_div(p.q_heads / p.kv_heads * q_len, run.tiles.item_rows);
  }
  run.item_count = blocks * ceil_div(p.kv_heads, run.tiles.item_heads) * run.splits;
  run.group_count = run.splits > 1 ? blocks * p.kv_heads : 0;
  // Waking a team costs some ten microseconds: about what one thread needs for 2^20 multiply-adds.
  const int64_t rows = run.item_count * run.tiles.item_heads * run.tiles.item_rows;
  const int64_t work = rows * run.tiles.key_split * (p.head_dim + p.v_dim);
  run.threads = static_cast<int>(std::min<int64_t>({p.num_threads, run.item_count, 1 + (work >> 20)}));
  run.threads = std::max(run.threads, 1);

  memory.sequences = aligned(sizeof(Sequence) * static_cast<size_t>(p.batch));
  memory.items = aligned(sizeof(Item) * static_cast<size_t>(run.item_count));
  memory.groups = aligned(sizeof(Item) * static_cast<size_t>(run.group_count));
  if (run.splits > 1)
    memory.partials = aligned(sizeof(float) * static_cast<size_t>(run.item_count * run.part_floats));
  return true;
}

}  // namespace

extern "C" int fa_attention(const fa_problem *problem) {
  const fa_problem &p = *problem;
  Run run = {};
  Memory sizes = {};
  fa::Watch watch;
  if (!fa::kernels_of(p.isa)) return FA_NO_ISA;
  if (p.batch == 0 || p.q_heads == 0 || p.q_len == 0) return FA_OK;
  plan_run(p, run, sizes);
  const size_t total = sizes.shared() + run.workspace_bytes * static_cast<size_t>(run.threads);
  char *const memory = static_cast<char *>(std::aligned_alloc(64, total));
  if (!memory) return FA_NO_MEMORY;
  char *const items = memory + sizes.sequences, *const groups = items + sizes.items;
  char *const partials = groups + sizes.groups;
  run.sequences = reinterpret_cast<Sequence *>(memory);
  run.items = reinterpret_cast<Item *>(items);
  run.groups = reinterpret_cast<Item *>(groups);
  run.workspaces = memory + sizes.shared();
  run.watch = fa::begin_watch(watch) ? &watch : nullptr;
  for (int64_t b = 0; b < p.batch; ++b) run.sequences[b] = sequence_of(p, b);
  make_items(run, reinterpret_cast<float *>(partials));
  const int status = execute(run);
  std::free(memory);
  return status;
}

extern "C" int fa_explain(const fa_problem *problem, fa_plan *plan) {
  const fa_problem &p = *problem;
  Run run = {};
  Memory sizes = {};
  if (!fa::kernels_of(p.isa)) return FA_NO_ISA;
  if (!plan_run(p, run, sizes)) return FA_NO_ISA;
  *plan = {};
  plan->isa = run.kernels->isa;
  plan->decode = run.tiles.decode;
  plan->threads = run.threads;
  plan->lanes = run.kernels->lanes;
  plan->sub_rows = run.kernels->sub_rows;
  plan->item_rows = run.tiles.item_rows;
  plan->key_tile = run.tiles.key_tile;
  plan->item_heads = run.tiles.item_heads;
  plan->key_split = run.tiles.key_split;
  plan->splits = run.splits;
  plan->items = run.item_count;
  plan->thread_bytes = static_cast<int64_t>(run.workspace_bytes);
  plan->shared_bytes = static_cast<int64_t>(sizes.shared());
  plan->l1_bytes = fa::cache_or_default(1);
  plan->l2_bytes = fa::cache_or_default(2);
  return FA_OK;
}
