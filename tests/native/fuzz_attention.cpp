// libFuzzer's target: any bytes are a call (call.hpp).
#include "call.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  calls::make(data, size);
  return 0;
}
