// The library's C functions, which native/library.py calls; plain C, so that one build serves every
// version of Python and PyTorch. Nothing of the C++ library is needed at run time: the system's C
// library is all that a built file asks for.

#include <pthread.h>

#include <cstdlib>
#include <cstring>

#include "api.hpp"
#ifdef TRUEORACLE_X86
#include <cpuid.h>
#endif

namespace trueoracle {

namespace {

// What one thread does: n = first, first + step, …
struct Share {
  pthread_t thread;
  bool is_started;
  long first, count, step;
  void (*work)(void*, long);
  void* context;
};

void* carry_out(void* given) {
  const Share& share = *static_cast<Share*>(given);
  for (long n = share.first; n < share.count; n += share.step) share.work(share.context, n);
  return nullptr;
}

}  // namespace

// This thread does the last share, and those for which no thread can be started.
void in_parallel(long count, long threads, void (*work)(void*, long), void* context) {
  Share own{{}, false, 0, count, 1, work, context};
  Share* shares = static_cast<Share*>(std::malloc(threads * sizeof(Share)));
  if (shares == nullptr) {
    carry_out(&own);
    return;
  }
  for (long t = 0; t < threads; t++) {
    shares[t] = {{}, false, t, count, threads, work, context};
    if (t < threads - 1)
      shares[t].is_started = pthread_create(&shares[t].thread, nullptr, carry_out, &shares[t]) == 0;
    if (!shares[t].is_started) carry_out(&shares[t]);
  }
  for (long t = 0; t < threads; t++)
    if (shares[t].is_started) pthread_join(shares[t].thread, nullptr);
  std::free(shares);
}

namespace {

#ifdef TRUEORACLE_X86
struct Features {
  bool avx2 = false, avx512 = false;
};

// What the processor offers and the operating system keeps the registers of. The compiler's own
// __builtin_cpu_supports needs a run-time library that not every linker brings: Zig's says no to all.
Features features() {
  unsigned a, b, c, d, low, high;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_FMA)) return {};
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return {};
  const unsigned ymm = 0x6, zmm = 0xe6;
  const unsigned avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  return {(low & ymm) == ymm && (b & bit_AVX2), (low & zmm) == zmm && (b & avx512) == avx512};
}
#endif

// The kernels that this processor can run, the fastest first; nullptr behind the last.
const Kernel* usable_kernel(int64_t index) {
  const Kernel* usable[4] = {};
  int count = 0;
#ifdef TRUEORACLE_X86
  const Features found = features();
  if (found.avx512) usable[count++] = &KERNEL_AVX512;
  if (found.avx2) usable[count++] = &KERNEL_AVX2;
#endif
  usable[count++] = &KERNEL_PORTABLE;
  return index >= 0 && index < count ? usable[index] : nullptr;
}

}  // namespace
}  // namespace trueoracle

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

using namespace trueoracle;

// Changes whenever a function or a struct here does; the Python side refuses any other number.
EXPORT int64_t trueoracle_interface() { return 2; }

EXPORT const char* trueoracle_kernel_name(int64_t kernel) {
  const Kernel* found = usable_kernel(kernel);
  return found == nullptr ? nullptr : found->name;
}

EXPORT int64_t trueoracle_lanes(int64_t kernel, int64_t is_double) {
  const Kernel* found = usable_kernel(kernel);
  return is_double ? found->lanes_of_double : found->lanes_of_float;
}

// A network of `count` blocks (network.hpp); nullptr where there are too many or no memory.
EXPORT Network* trueoracle_network(int64_t count, int64_t weights, int64_t outputs,
                                   const Block* blocks) {
  if (count < 1 || count > MOST_BLOCKS) return nullptr;
  Network* network = static_cast<Network*>(std::malloc(sizeof(Network)));
  if (network == nullptr) return nullptr;
  network->count = count;
  network->weights = weights;
  network->outputs = outputs;
  std::memcpy(network->blocks, blocks, count * sizeof(Block));
  return network;
}

EXPORT void trueoracle_free(Network* network) { std::free(network); }

// One thread's workspace in bytes.
EXPORT int64_t trueoracle_bytes(int64_t kernel, int64_t is_double, const Network* network,
                                int64_t backward) {
  const Kernel* found = usable_kernel(kernel);
  return (is_double ? found->bytes_double : found->bytes_float)(*network, backward != 0);
}

// Carries out a task for every unit; 0: done, 1: not enough memory.
EXPORT int64_t trueoracle_run(int64_t kernel, int64_t is_double, const Network* network,
                              int64_t task, Unit* units, int64_t unit_count, int64_t images,
                              int64_t batch_size, int64_t threads, const Optimizer* optimizer) {
  const Kernel* found = usable_kernel(kernel);
  Job job{network, units, long(unit_count), long(images), long(batch_size), long(threads),
          *optimizer, Task(task)};
  return (is_double ? found->run_double : found->run_float)(job) ? 0 : 1;
}
