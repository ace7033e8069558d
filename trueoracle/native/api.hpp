// The entry points that every instruction set offers, for float and double.
#pragma once

#include "network.hpp"

namespace trueoracle {

// Work on one lane group: the weights of LANES networks side by side, [weights][LANES].
struct Unit {
  void* weights;
  void* state;         // of the optimiser: [weights][LANES] once (SGD) or twice (Adam)
  Images images;
  int64_t steps_before;  // optimiser steps already taken
  double* loss;          // [1 + blocks][LANES], added to: all images, then those of each block
  int64_t* right;        // the same
  const int64_t* blocks;  // the block of each image; nullptr: there are none
  void* out;             // gradients [weights][LANES], or outputs [images][outputs][LANES]
};

enum class Task : int64_t { train = 0, evaluate, gradients, outputs };

struct Job {
  const Network* network;
  Unit* units;
  long unit_count, images, batch_size, threads;
  Optimizer optimizer;
  Task task;
};

struct Kernel {
  const char* name;
  long lanes_of_float, lanes_of_double;
  bool (*run_float)(const Job&);   // false: not enough memory
  bool (*run_double)(const Job&);
  long (*bytes_float)(const Network&, bool backward);
  long (*bytes_double)(const Network&, bool backward);
};

extern const Kernel KERNEL_PORTABLE;
#ifdef TRUEORACLE_X86
extern const Kernel KERNEL_AVX2, KERNEL_AVX512;
#endif

// Calls work(context, n) for n = 0 … count - 1 on `threads` threads; see library.cpp.
void in_parallel(long count, long threads, void (*work)(void* context, long n), void* context);

}  // namespace trueoracle
