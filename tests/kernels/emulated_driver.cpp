// libcuda.so.1 as far as our loader uses it, with the CPU build of the kernels behind cuLaunchKernel.
//
// It proves that what we hand to the real bindings arrives as the kernels expect it: names, extents, arguments.
// It proves nothing about a GPU. The environment says what it pretends to be: EMULATED_SM, EMULATED_CUDA.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" {

const char* edge_signature(const char* name);
int edge_launch(const char* name, const unsigned* grid, const unsigned* block, void** arguments);

enum { success = 0, invalid_image = 200, no_binary_for_gpu = 209, not_found = 500, launch_failed = 719 };

static int setting(const char* name, int otherwise) {
  const char* text = getenv(name);
  return text == nullptr ? otherwise : atoi(text);
}

int cuInit(unsigned) { return setting("EMULATED_STATUS", success); }

int cuDriverGetVersion(int* version) {
  *version = setting("EMULATED_CUDA", 12060);
  return success;
}

int cuCtxGetCurrent(void** context) {
  static int here;
  *context = setting("EMULATED_CONTEXT", 1) ? &here : nullptr;
  return success;
}

int cuCtxGetDevice(int* device) {
  *device = 0;
  return success;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  const int sm = setting("EMULATED_SM", 87);
  *value = attribute == 75 ? sm / 10 : sm % 10;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, else _MINOR
  return success;
}

// The architecture stands in the ELF header's flags: the low byte to CUDA 12, the one above it from CUDA 13.
int cuModuleLoadData(void** module, const void* image) {
  const unsigned char* bytes = static_cast<const unsigned char*>(image);
  if (memcmp(bytes, "\x7f" "ELF", 4) != 0) return invalid_image;
  unsigned flags;
  memcpy(&flags, bytes + 48, sizeof flags);
  const unsigned sm = bytes[7] == 0x41 ? flags >> 8 & 0xff : flags & 0xff;
  if (static_cast<int>(sm) != setting("EMULATED_SM", 87)) return no_binary_for_gpu;
  *module = const_cast<void*>(image);
  return success;
}

int cuModuleUnload(void*) { return success; }

int cuModuleGetFunction(void** function, void*, const char* name) {
  if (edge_signature(name) == nullptr) return not_found;
  *function = strdup(name);
  return success;
}

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared_bytes, void* stream, void** arguments, void** extra) {
  const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
  fprintf(stderr, "launch %s on stream %p\n", static_cast<char*>(function), stream);
  if (shared_bytes != 0 || extra != nullptr) return launch_failed;
  return edge_launch(static_cast<char*>(function), grid, block, arguments) == 0 ? success : launch_failed;
}

// What cuda-core asks for besides: one device, one context, one stream, and the same modules called libraries.

static int something;  // a handle to show

int cuDeviceGetCount(int* count) {
  *count = 1;
  return success;
}

int cuDeviceGet(int* device, int) {
  *device = 0;
  return success;
}

int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &something;
  return success;
}

int cuDevicePrimaryCtxRelease(int) { return success; }
int cuCtxSetCurrent(void*) { return success; }

int cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  *least = *greatest = 0;
  return success;
}

int cuStreamCreateWithPriority(void** stream, unsigned, int) {
  *stream = &something;
  return success;
}

int cuStreamDestroy(void*) { return success; }
int cuStreamSynchronize(void*) { return success; }

int cuLibraryLoadData(void** library, const void* code, int*, void**, unsigned, int*, void**, unsigned) {
  return cuModuleLoadData(library, code);
}

int cuLibraryUnload(void*) { return success; }
int cuLibraryGetKernel(void** kernel, void* library, const char* name) {
  return cuModuleGetFunction(kernel, library, name);
}

struct LaunchConfig {
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
};

int cuLaunchKernelEx(const LaunchConfig* config, void* kernel, void** arguments, void** extra) {
  const unsigned *g = config->grid, *b = config->block;
  return cuLaunchKernel(kernel, g[0], g[1], g[2], b[0], b[1], b[2], config->shared_bytes, config->stream, arguments,
                        extra);
}

int cuGetExportTable(const void** table, const void*) {  // NVRTC 13 asks, and does without
  *table = nullptr;
  return not_found;
}

int cuGetProcAddress_v2(const char* name, void** entry, int, unsigned long long, int*) {
  *entry = dlsym(RTLD_DEFAULT, name);
  if (*entry == nullptr) {  // bindings load this library for themselves alone
    Dl_info self;
    dladdr(reinterpret_cast<void*>(&cuInit), &self);
    void* library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    *entry = library == nullptr ? nullptr : dlsym(library, name);
  }
  return success;
}

int cuGetProcAddress(const char* name, void** entry, int version, unsigned long long flags) {
  return cuGetProcAddress_v2(name, entry, version, flags, nullptr);
}

}  // extern "C"
