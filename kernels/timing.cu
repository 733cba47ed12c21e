// l2_flush: puts other data into the L2 cache.   spin: holds a stream until the host lets it go.
//
// l2_flush(buffer, words, sums)
//   Launch: block 256, any grid; `sums` holds one word per thread of the launch. It reads every 32-bit word of
//   `buffer` once and leaves the exclusive or of what it read in `sums`, so nothing can be optimised away and a test
//   can see that nothing was left out. Give a buffer of at least twice the L2 size. It reads and does not write:
//   the cache is left full of clean lines, so the inference that follows pays for its own misses and not for writing
//   back somebody else's data, as it does after a memset.
//
// spin(state, timeout_ns)
//   Launch: one block, one thread, before the work to be timed. `state` is two words of pinned, mapped host memory,
//   both 0: the host writes 1 to state[0] to let the stream go; the kernel writes to state[1] what ended it, 1 for
//   let go and 2 for timed out. While it holds the stream, the host enqueues everything, and events around the work
//   then see no launch latency. A result with state[1] == 2 was not held long enough: throw it away. Give a timeout:
//   a display's watchdog kills a kernel that runs for seconds, and a host that dies would leave the GPU spinning.
#include "edge.cuh"

namespace {

__device__ wide_t now_ns() {
#ifdef __CUDA_ARCH__
  wide_t time_ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time_ns));
  return time_ns;
#else
  return host::now_ns();
#endif
}

}  // namespace

extern "C" __global__ void l2_flush(const word_t* buffer, long long words, word_t* sums) {
  const long long self = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const long long threads = static_cast<long long>(gridDim.x) * blockDim.x;
  word_t sum = 0;
  for (long long i = self; i < words; i += threads) sum ^= buffer[i];
  sums[self] = sum;
}

extern "C" __global__ void spin(volatile word_t* state, wide_t timeout_ns) {
  const wide_t start_ns = now_ns();
  word_t outcome = 2;
  do {
    if (state[0] != 0) {
      outcome = 1;
      break;
    }
  } while (now_ns() - start_ns < timeout_ns);
  state[1] = outcome;
  __threadfence_system();
}
