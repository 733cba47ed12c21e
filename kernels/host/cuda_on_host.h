// CUDA's words for g++: runs the kernels of this folder on a CPU, to test what they compute. Not a product.
//
// A kernel without barriers runs thread after thread. One with barriers runs each thread of a block as a thread of
// the system, so that a missing __syncthreads() is a data race that ThreadSanitizer sees. Blocks run one after the
// other, so __shared__ is one static object, and holds garbage from the block before, as on a GPU.
#pragma once

#include <math.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#define __global__
#define __device__
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
};

inline thread_local dim3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline pthread_barrier_t* block_barrier = nullptr;

inline void __syncthreads() { pthread_barrier_wait(block_barrier); }
inline void __threadfence_system() { __sync_synchronize(); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

namespace host {

inline unsigned bits_of(float value) {
  unsigned bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(unsigned bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Round to nearest, ties to even: adding a magic number makes the float adder round at the half's last bit.
inline unsigned short half_of(float value) {
  const unsigned bits = bits_of(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return static_cast<unsigned short>(sign | 0x7fffu);  // NaN
  if (size >= 0x47800000u) return static_cast<unsigned short>(sign | 0x7c00u);  // 2^16 and above: infinity
  if (size < 0x38800000u) {  // below 2^-14: subnormal, in steps of 2^-24
    return static_cast<unsigned short>(sign | (bits_of(float_of(size) + 0.5f) - bits_of(0.5f)));
  }
  const unsigned odd = size >> 13 & 1;
  return static_cast<unsigned short>(sign | ((size - 0x38000000u + 0xfffu + odd) >> 13));
}

inline float float_of_half(unsigned short half) {
  const unsigned sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ffu;
  if (exponent == 31) return float_of(sign | 0x7f800000u | fraction << 13);
  const float size = exponent ? float_of((exponent + 112) << 23 | fraction << 13) : static_cast<float>(fraction) / 16777216.0f;
  return float_of(sign | bits_of(size));
}

inline unsigned long long now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<unsigned long long>(now.tv_sec) * 1000000000ull + static_cast<unsigned long long>(now.tv_nsec);
}

}  // namespace host
