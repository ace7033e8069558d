// The library's C functions, which native/library.py calls; plain C, so that one build serves every
// version of Python and PyTorch.

#include <cstring>
#include <exception>
#include <new>
#include <thread>
#include <vector>

#include "api.hpp"

namespace trueoracle {

void in_parallel(long count, long threads, void (*work)(void*, long), void* context) {
  auto share = [=](long first) {
    for (long n = first; n < count; n += threads) work(context, n);
  };
  std::vector<std::thread> others;
  long own = 1;  // this thread does the first share, and those for which no thread can be started
  try {
    others.reserve(threads);
    for (; own < threads; own++) others.emplace_back(share, own);
  } catch (const std::exception&) {
    for (long t = own; t < threads; t++) share(t);
  }
  share(0);
  for (auto& other : others) other.join();
}

namespace {

// The kernels that this processor can run, the fastest first; nullptr behind the last.
const Kernel* usable_kernel(int64_t index) {
  const Kernel* usable[4] = {};
  int count = 0;
#ifdef TRUEORACLE_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    usable[count++] = &KERNEL_AVX512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    usable[count++] = &KERNEL_AVX2;
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
  Network* network = new (std::nothrow) Network;
  if (network == nullptr) return nullptr;
  network->count = count;
  network->weights = weights;
  network->outputs = outputs;
  std::memcpy(network->blocks, blocks, count * sizeof(Block));
  return network;
}

EXPORT void trueoracle_free(Network* network) { delete network; }

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
