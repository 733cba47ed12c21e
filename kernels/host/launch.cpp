// Every kernel of this folder as one shared library for the CPU, launched with the arguments of cuLaunchKernel.
//
//   g++ -std=c++17 -O2 -fPIC -shared -ffp-contract=off -pthread -I kernels kernels/host/launch.cpp -o edge_host.so
#include <functional>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "../preprocess.cu"
#include "../segmentation.cu"
#include "../timing.cu"
#include "../topk.cu"

namespace {

struct Kernel {
  std::string name, signature;  // the signature has one letter per parameter, as in Python's struct; P is a pointer
  bool barriers;
  std::function<void(void**)> call;
};

template <class A>
char letter() {
  if (std::is_pointer<A>::value) return 'P';
  if (std::is_same<A, int>::value) return 'i';
  if (std::is_same<A, float>::value) return 'f';
  if (std::is_same<A, long long>::value) return 'q';
  if (std::is_same<A, unsigned long long>::value) return 'Q';
  return '?';
}

template <class... A, std::size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<A*>(arguments[I])...);
}

template <class... A>
Kernel entry(const char* name, void (*kernel)(A...), bool barriers = false) {
  return {name, std::string{letter<A>()...}, barriers,
          [kernel](void** arguments) { call(kernel, arguments, std::index_sequence_for<A...>{}); }};
}

const Kernel kernels[] = {
    entry("preprocess_f32", preprocess_f32), entry("preprocess_f16", preprocess_f16),
    entry("preprocess_i8", preprocess_i8),   entry("argmax_f32", argmax_f32),
    entry("argmax_f16", argmax_f16),         entry("palette", palette),
    entry("topk_f32", topk_f32, true),       entry("topk_f16", topk_f16, true),
    entry("l2_flush", l2_flush),             entry("spin", spin),
};

const Kernel* find(const char* name) {
  for (const Kernel& kernel : kernels) {
    if (kernel.name == name) return &kernel;
  }
  return nullptr;
}

template <class Visit>
void each(const dim3& extent, Visit visit) {
  for (unsigned z = 0; z < extent.z; ++z) {
    for (unsigned y = 0; y < extent.y; ++y) {
      for (unsigned x = 0; x < extent.x; ++x) visit(dim3{x, y, z});
    }
  }
}

void run_together(const Kernel& kernel, void** arguments) {
  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, nullptr, blockDim.x * blockDim.y * blockDim.z);
  block_barrier = &barrier;
  std::vector<std::thread> threads;
  each(blockDim, [&](dim3 self) {
    threads.emplace_back([&, self] {
      threadIdx = self;
      each(gridDim, [&](dim3 block) {
        blockIdx = block;
        kernel.call(arguments);
        __syncthreads();  // one block at a time: they share one copy of __shared__
      });
    });
  });
  for (std::thread& thread : threads) thread.join();
  pthread_barrier_destroy(&barrier);
}

}  // namespace

// The parameters' letters, or a null pointer for a kernel that is not here.
extern "C" const char* edge_signature(const char* name) {
  const Kernel* kernel = find(name);
  return kernel == nullptr ? nullptr : kernel->signature.c_str();
}

// Runs a kernel; 0, or 1 where there is none of that name. `arguments` points to each argument in turn.
extern "C" int edge_launch(const char* name, const unsigned* grid, const unsigned* block, void** arguments) {
  const Kernel* kernel = find(name);
  if (kernel == nullptr) return 1;
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block[0], block[1], block[2]};
  if (kernel->barriers) {
    run_together(*kernel, arguments);
  } else {
    each(gridDim, [&](dim3 b) {
      blockIdx = b;
      each(blockDim, [&](dim3 t) {
        threadIdx = t;
        kernel->call(arguments);
      });
    });
  }
  return 0;
}
