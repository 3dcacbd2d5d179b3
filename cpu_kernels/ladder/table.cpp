// The steps of one instruction set, by number.
#include "ladder.hpp"
#include "steps.hpp"

#define LADDER_DECLARE(number, name, idea) LADDER_STEP(number);
LADDER_STEPS(LADDER_DECLARE)

typedef void (*Function)(const ladder_problem &);

#define LADDER_ADDRESS(number, name, idea) LADDER_SYMBOL(ladder_attention_##number),
extern "C" const Function LADDER_SYMBOL(ladder_table)[];
const Function LADDER_SYMBOL(ladder_table)[] = {LADDER_STEPS(LADDER_ADDRESS)};
