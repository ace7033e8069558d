// The kernels' arguments: the shape of a network, the images, the optimiser. Plain data only.
#pragma once

#include <cstdint>

namespace trueoracle {

constexpr long MOST_BLOCKS = 128;

// Code that all kernels share must be inlined: of a function the linker would keep one compiled
// version for all, perhaps that for a processor which is not present.
#define ALWAYS_INLINE inline __attribute__((always_inline))

// The numbers are those of lowering.py.
enum class Activation : int64_t {
  identity = 0, relu, leaky_relu, clamp, elu, sigmoid, tanh, silu, gelu
};
enum class Pool : int64_t { none = 0, max, average };

struct Block;

// The border around a buffer of activations.
struct Frame {
  long pad_h, pad_w, floats;  // floats: numbers in one sample's buffer, borders included
  ALWAYS_INLINE long at(const Block& block, long f, long y, long x) const;
  ALWAYS_INLINE long size() const { return floats; }
};

// Part of an axis that a pooling window covers, and how much of the window lies before the image.
struct Span {
  long from, to, skipped;
};

// Convolution (or none), activation, pooling, in this order. A linear layer is a convolution of
// 1x1 images. The fields up to `beta_bits` come from Python, one whole number each, in this order.
struct Block {
  int64_t has_conv, has_bias, weight_at, bias_at;  // offsets into the vector of all weights
  int64_t C, H, W, F, KH, KW;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, OH, OW;
  Activation activation;
  Pool pool;
  int64_t pool_h, pool_w, pool_stride_h, pool_stride_w, pool_pad_h, pool_pad_w, counts_padding;
  int64_t PH, PW;
  double alpha, beta;  // of the activation
  int64_t keeps_before, pools_first;

  static constexpr int FIELDS = 33;

  ALWAYS_INLINE long input_size() const { return C * (H + 2 * pad_h) * (W + 2 * pad_w); }
  ALWAYS_INLINE long conv_size() const { return F * OH * OW; }
  ALWAYS_INLINE long output_size() const { return F * PH * PW; }
  ALWAYS_INLINE long filter_size() const { return C * KH * KW; }
  ALWAYS_INLINE bool activates_after_pool() const { return pools_first != 0; }

  // Whether windows neither overlap nor leave gaps nor reach over the border.
  ALWAYS_INLINE bool pools_apart() const {
    return pool_stride_h == pool_h && pool_stride_w == pool_w && !pool_pad_h && !pool_pad_w;
  }
  // Whether every value falls into exactly one window.
  ALWAYS_INLINE bool pools_all() const { return pools_apart() && PH * pool_h == OH && PW * pool_w == OW; }
  // The rows of the convolution's output that anything reads.
  ALWAYS_INLINE long used_rows() const { return pool != Pool::none && pools_apart() ? PH * pool_h : OH; }

  static ALWAYS_INLINE Span window(long index, long stride, long pad, long size, long extent) {
    const long start = index * stride - pad;
    const long from = start < 0 ? 0 : start;
    const long to = start + size > extent ? extent : start + size;
    return Span{from, to, from - start};
  }
  ALWAYS_INLINE Span window_rows(long y) const {
    return window(y, pool_stride_h, pool_pad_h, pool_h, OH);
  }
  ALWAYS_INLINE Span window_columns(long x) const {
    return window(x, pool_stride_w, pool_pad_w, pool_w, OW);
  }
  ALWAYS_INLINE long divisor(Span rows, Span columns) const {
    return counts_padding ? pool_h * pool_w : (rows.to - rows.from) * (columns.to - columns.from);
  }
};

ALWAYS_INLINE long Frame::at(const Block& block, long f, long y, long x) const {
  return (f * (block.PH + 2 * pad_h) + y + pad_h) * (block.PW + 2 * pad_w) + x + pad_w;
}

struct Network {
  long count;    // of blocks
  long weights;  // numbers in one network, biases included
  long outputs;  // classes
  Block blocks[MOST_BLOCKS];
};

// Images and labels for one lane group. `shared`: [N][C][H][W] plain numbers and [N] labels for all
// lanes; else every lane has its own: [N][C][H][W][lanes] and [N][lanes].
struct Images {
  const void* pixels;
  const int64_t* labels;
  int64_t shared;
  ALWAYS_INLINE long label(long image, int lane, int lanes) const {
    return shared ? labels[image] : labels[image * lanes + lane];
  }
};

// PyTorch's SGD (momentum, no dampening), Adam and AdamW (betas 0.9 and 0.999, epsilon 1e-8).
struct Optimizer {
  enum Kind : int64_t { sgd = 0, adam, adamw };
  int64_t kind;
  double learning_rate, momentum, weight_decay, label_smoothing, gradient_clip;  // clip 0: off
};

}  // namespace trueoracle
