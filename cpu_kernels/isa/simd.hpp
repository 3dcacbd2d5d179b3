// The vectors of the instruction set this file is compiled for.
#pragma once
#if defined(__AVX512F__)
#include "simd_avx512.hpp"
#elif defined(__AVX2__)
#include "simd_avx2.hpp"
#else
#include "simd_baseline.hpp"
#endif
