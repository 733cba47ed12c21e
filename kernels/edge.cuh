// What every kernel here shares: half precision without CUDA's headers, and the switch to the host build.
//
// The kernels use no header of the CUDA toolkit, so NVRTC alone compiles them, and g++ does too behind
// host/cuda_on_host.h. Arithmetic is plain IEEE float32 in the order written: compile with --fmad=false (nvcc:
// -fmad=false) and a result equals the NumPy reference bit for bit.
#pragma once

#if !defined(__CUDACC__) && !defined(__CUDACC_RTC__)
#include "host/cuda_on_host.h"
#define ROLLED
#else
#define ROLLED _Pragma("unroll 1")  // before a loop of unknown length: small code rather than many copies of it
#endif

typedef unsigned char byte_t;
typedef unsigned short half_t;  // the bits of an IEEE binary16
typedef unsigned int word_t;
typedef unsigned long long wide_t;

// float32 to binary16, round to nearest, ties to even; overflow gives infinity.
__device__ inline half_t half_of(float value) {
#ifdef __CUDA_ARCH__
  half_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  return host::half_of(value);
#endif
}

// A logit as float32; exact from either type.
__device__ inline float float_of(float value) { return value; }

__device__ inline float float_of(half_t bits) {
#ifdef __CUDA_ARCH__
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#else
  return host::float_of_half(bits);
#endif
}

// The bits of a float32, and back.
__device__ inline word_t bits_of(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  return host::bits_of(value);
#endif
}

__device__ inline float float_from(word_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  return host::float_of(bits);
#endif
}
