// What Python calls: the list of steps, and each of them for each instruction set of the build.
#include "ladder.h"

#include "../fastattention.h"
#include "steps.hpp"

typedef void (*Function)(const ladder_problem &);
extern "C" const Function ladder_table_baseline[], ladder_table_avx2[], ladder_table_avx512[];

namespace {

struct Step {
  const char *name, *idea;
};

#define LADDER_ENTRY(number, name, idea) {#number "_" #name, idea},
constexpr Step STEPS[] = {LADDER_STEPS(LADDER_ENTRY)};
constexpr int COUNT = sizeof STEPS / sizeof STEPS[0];

const Function *table(int isa) {
  switch (isa) {
#ifdef LADDER_HAVE_AVX512
    case FA_ISA_AVX512: return ladder_table_avx512;
#endif
#ifdef LADDER_HAVE_AVX2
    case FA_ISA_AVX2: return ladder_table_avx2;
#endif
    case FA_ISA_BASELINE: return ladder_table_baseline;
    default: return nullptr;
  }
}

}  // namespace

int ladder_steps(void) { return COUNT; }
const char *ladder_name(int step) { return step >= 0 && step < COUNT ? STEPS[step].name : nullptr; }
const char *ladder_idea(int step) { return step >= 0 && step < COUNT ? STEPS[step].idea : nullptr; }

int ladder_attention(int step, int isa, const ladder_problem *problem) {
  const Function *steps = table(isa);
  if (!steps || step < 0 || step >= COUNT) return 1;
  steps[step](*problem);
  return 0;
}
