// Trains and evaluates populations of small feed-forward networks on one CPU core.
//
// The candidates stand in the lanes of a vector register: every number of a network (an activation,
// a weight, a gradient) is one vector that holds it for LANES networks at once. So no layer needs
// im2col, padding to a multiple of the register or a shape of its own, and one network's arithmetic
// never mixes with another's: a candidate's result does not depend on its neighbours.
//
// This header is compiled once for each instruction set, in a namespace of its own (INSTRUCTIONS),
// for registers of REGISTER_BYTES. It uses no templates of the standard library: the linker could
// take an instance compiled for AVX-512 for all of them.
//
// Layout of a buffer of activations: [sample][channel][row][column] of vectors, with a border of
// the padding that the layer reading it wants. Weights: [filter][channel][row][column], as PyTorch.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "api.hpp"
#ifdef TRUEORACLE_X86
#include <xmmintrin.h>
#endif

namespace trueoracle {
namespace INSTRUCTIONS {

// The accumulators that fit the registers beside the operands (32 registers, or 16).
constexpr int ACCUMULATORS = REGISTER_BYTES == 64 ? 24 : 12;
constexpr int MOST_POSITIONS = REGISTER_BYTES == 64 ? 12 : 10;
constexpr int MOST_FILTERS = REGISTER_BYTES == 64 ? 5 : 2;
constexpr long BAND_BYTES = 64 * 1024;

template <class T>
struct Lanes {
  static constexpr int COUNT = REGISTER_BYTES / sizeof(T);
  typedef T Vector __attribute__((vector_size(REGISTER_BYTES)));
  typedef int16_t Index __attribute__((vector_size(REGISTER_BYTES / sizeof(T) * 2)));
  // What a comparison of two Vectors gives: -1 and 0 in whole numbers as wide as T.
  typedef decltype(Vector{} > Vector{}) Mask;
};

inline long smaller(long a, long b) { return a < b ? a : b; }
inline long larger(long a, long b) { return a > b ? a : b; }
inline long divide_up(long a, long b) { return (a + b - 1) / b; }

// One dimension of a reduction: how often, and how far operands a and b move each time.
struct Loop {
  long count, a, b;
};

// All the arithmetic of convolution and linear layers, forward and backward, is this product:
//   out[p, q] = first[p, q] + sum over r of a[p, r] * b[q, r]
// with every operand addressed by strides. P * Q sums stay in registers.
// A is Vector, or a plain number that all lanes share (the images in the first layer).
template <class T, class A>
struct Product {
  typedef typename Lanes<T>::Vector Vector;
  const A* a;
  long a_step;  // from p to p + 1
  const Vector* b;
  long b_step;  // from q to q + 1
  Loop loops[3];
  const Vector* first;
  long first_p, first_q;
  Vector* out;
  long out_p, out_q;
};

template <class T, class A, int P, int Q, bool ADJACENT>
void tile(const Product<T, A>& o) {
  typedef typename Lanes<T>::Vector Vector;
  Vector sum[P][Q];
#pragma GCC unroll 16
  for (int p = 0; p < P; p++)
#pragma GCC unroll 8
    for (int q = 0; q < Q; q++) sum[p][q] = o.first[p * o.first_p + q * o.first_q];
  const long step = ADJACENT ? 1 : o.a_step;
  const long a2 = o.loops[2].a, b2 = o.loops[2].b, b_step = o.b_step;
  for (long i = 0; i < o.loops[0].count; i++) {
    for (long j = 0; j < o.loops[1].count; j++) {
      const A* a = o.a + i * o.loops[0].a + j * o.loops[1].a;
      const Vector* b = o.b + i * o.loops[0].b + j * o.loops[1].b;
      for (long k = o.loops[2].count; k > 0; k--, a += a2, b += b2) {
        Vector right[Q];
#pragma GCC unroll 8
        for (int q = 0; q < Q; q++) right[q] = b[q * b_step];
#pragma GCC unroll 16
        for (int p = 0; p < P; p++) {
          Vector left = a[p * step] - Vector{};  // in all lanes; x - 0 is x, and costs nothing
#ifdef TRUEORACLE_X86
          if (Q > 1) asm("" : "+x"(left));  // else the compiler loads it once for each q
#endif
#pragma GCC unroll 8
          for (int q = 0; q < Q; q++) sum[p][q] += left * right[q];
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; p++)
#pragma GCC unroll 8
    for (int q = 0; q < Q; q++) o.out[p * o.out_p + q * o.out_q] = sum[p][q];
}

// The tile of every size that fits the registers, as a table of functions.
template <class T, class A>
struct Tiles {
  typedef void (*Function)(const Product<T, A>&);
  Function of[MOST_POSITIONS + 1][MOST_FILTERS + 1][2];

  template <int P, int Q>
  constexpr void fill() {
    if constexpr (P * Q <= ACCUMULATORS || P == 1 || Q == 1) {
      of[P][Q][0] = tile<T, A, P, Q, false>;
      of[P][Q][1] = tile<T, A, P, Q, true>;
    } else {
      of[P][Q][0] = of[P][Q][1] = nullptr;
    }
    if constexpr (Q < MOST_FILTERS)
      fill<P, Q + 1>();
    else if constexpr (P < MOST_POSITIONS)
      fill<P + 1, 1>();
  }
  constexpr Tiles() : of{} { fill<1, 1>(); }
};

template <class T, class A>
inline constexpr Tiles<T, A> TILES{};

// How to cut p x q results into tiles: the way that takes the fewest cycles in a simple model (two
// multiply-adds and two loads per cycle, four cycles from one addition to a sum to the next).
struct Cut {
  long p_parts, q_parts;
};

inline Cut best_cut(long p_count, long q_count) {
  Cut best{p_count, q_count};
  double least = 1e300;
  for (long p = 1; p <= smaller(p_count, MOST_POSITIONS); p++) {
    for (long q = 1; q <= smaller(q_count, MOST_FILTERS); q++) {
      if (p * q > ACCUMULATORS && p > 1 && q > 1) continue;
      const long p_parts = divide_up(p_count, p), q_parts = divide_up(q_count, q);
      double cycles = 0.5 * p * q;
      if (cycles < 0.5 * (p + q)) cycles = 0.5 * (p + q);
      if (cycles < 4) cycles = 4;
      cycles += 1;
      const double total = cycles * p_parts * q_parts;
      if (total < least) {
        least = total;
        best = Cut{p_parts, q_parts};
      }
    }
  }
  return best;
}

// All p_count x q_count results of a product. `rows` repeats it `row_count` times with a and out
// moved, inside the loop over q, so that a block of b stays in the nearest cache.
struct Rows {
  long count, a, out;
};

template <class T, class A>
void multiply(Product<T, A> o, long p_count, long q_count, Rows rows = Rows{1, 0, 0}) {
  const Cut cut = best_cut(p_count, q_count);
  const bool adjacent = o.a_step == 1;
  const Product<T, A> whole = o;
  for (long i = 0; i < cut.q_parts; i++) {
    const long q0 = i * q_count / cut.q_parts, q1 = (i + 1) * q_count / cut.q_parts;
    for (long row = 0; row < rows.count; row++) {
      for (long j = 0; j < cut.p_parts; j++) {
        const long p0 = j * p_count / cut.p_parts, p1 = (j + 1) * p_count / cut.p_parts;
        o.a = whole.a + row * rows.a + p0 * whole.a_step;
        o.b = whole.b + q0 * whole.b_step;
        o.out = whole.out + row * rows.out + p0 * whole.out_p + q0 * whole.out_q;
        o.first = whole.first + p0 * whole.first_p + q0 * whole.first_q;
        if (whole.first == whole.out) o.first += row * rows.out;
        TILES<T, A>.of[p1 - p0][q1 - q0][adjacent](o);
      }
    }
  }
}

template <class T, class Function>
typename Lanes<T>::Vector each_lane(typename Lanes<T>::Vector x, Function function) {
  for (int i = 0; i < Lanes<T>::COUNT; i++) x[i] = function(x[i]);
  return x;
}

// A scalar in every lane.
template <class T>
typename Lanes<T>::Vector all(T x) {
  return x - typename Lanes<T>::Vector{};  // x - 0 is x, where x + 0 would turn -0 into 0
}

// A whole number in every lane, of the type that comparisons give.
template <class T>
typename Lanes<T>::Mask number(long x) {
  return typename Lanes<T>::Mask{} + int(x);
}

// Applies a function to `count` vectors; the loop is compiled once for each function.
template <class T, class Function>
inline void each_vector(const typename Lanes<T>::Vector* in, typename Lanes<T>::Vector* out,
                        long count, Function function) {
  for (long i = 0; i < count; i++) out[i] = function(in[i]);
}

// The activation of `count` vectors; `in` and `out` may be the same.
template <class T>
void activate(const Block& block, const typename Lanes<T>::Vector* in,
              typename Lanes<T>::Vector* out, long count) {
  typedef typename Lanes<T>::Vector Vector;
  const T alpha = T(block.alpha), beta = T(block.beta);
  switch (block.activation) {
    case Activation::identity:
      if (in != out) std::memcpy(out, in, count * sizeof(Vector));
      return;
    case Activation::relu:  // keeps NaN, as PyTorch does
      return each_vector<T>(in, out, count, [](Vector x) { return x < 0 ? Vector{} : x; });
    case Activation::leaky_relu:
      return each_vector<T>(in, out, count, [=](Vector x) { return x < 0 ? x * alpha : x; });
    case Activation::clamp:
      return each_vector<T>(in, out, count, [=](Vector x) {
        return x < alpha ? all<T>(alpha) : (x > beta ? all<T>(beta) : x);
      });
    case Activation::elu:
      return each_vector<T>(in, out, count, [=](Vector x) {
        return each_lane<T>(x, [=](T v) { return v > 0 ? v : alpha * std::expm1(v); });
      });
    case Activation::sigmoid:
      return each_vector<T>(in, out, count, [](Vector x) {
        return each_lane<T>(x, [](T v) { return 1 / (1 + std::exp(-v)); });
      });
    case Activation::tanh:
      return each_vector<T>(in, out, count, [](Vector x) {
        return each_lane<T>(x, [](T v) { return std::tanh(v); });
      });
    case Activation::silu:
      return each_vector<T>(in, out, count, [](Vector x) {
        return each_lane<T>(x, [](T v) { return v / (1 + std::exp(-v)); });
      });
    case Activation::gelu:
      return each_vector<T>(in, out, count, [](Vector x) {
        return each_lane<T>(x,
                            [](T v) { return v * T(0.5) * (1 + std::erf(v * T(M_SQRT1_2))); });
      });
  }
}

// Multiplies `d` by the activation's derivative, which follows from its output y where
// Block::activates_after_pool holds or nothing was kept, else from its input x.
template <class T>
void times_slope(const Block& block, typename Lanes<T>::Vector* d,
                 const typename Lanes<T>::Vector* x, const typename Lanes<T>::Vector* y,
                 long count) {
  typedef typename Lanes<T>::Vector Vector;
  const T alpha = T(block.alpha), beta = T(block.beta);
  switch (block.activation) {
    case Activation::identity:
      return;
    case Activation::relu:
      for (long i = 0; i < count; i++) d[i] = y[i] > 0 ? d[i] : Vector{};
      return;
    case Activation::leaky_relu:
      for (long i = 0; i < count; i++) d[i] = y[i] > 0 ? d[i] : d[i] * alpha;
      return;
    case Activation::clamp:
      for (long i = 0; i < count; i++) d[i] = ((y[i] > alpha) & (y[i] < beta)) ? d[i] : Vector{};
      return;
    case Activation::elu:
      for (long i = 0; i < count; i++) d[i] = y[i] > 0 ? d[i] : d[i] * (y[i] + alpha);
      return;
    case Activation::sigmoid:
      for (long i = 0; i < count; i++) d[i] *= y[i] * (1 - y[i]);
      return;
    case Activation::tanh:
      for (long i = 0; i < count; i++) d[i] *= 1 - y[i] * y[i];
      return;
    case Activation::silu:
      for (long i = 0; i < count; i++)
        d[i] *= each_lane<T>(x[i], [](T v) {
          const T s = 1 / (1 + std::exp(-v));
          return s * (1 + v * (1 - s));
        });
      return;
    case Activation::gelu:
      for (long i = 0; i < count; i++)
        d[i] *= each_lane<T>(x[i], [](T v) {
          const T density = std::exp(T(-0.5) * v * v) * T(0.3989422804014327);
          return T(0.5) * (1 + std::erf(v * T(M_SQRT1_2))) + v * density;
        });
      return;
  }
}

// One row of pooled values. The windows' sides and strides are arguments so that the compiler makes
// a loop of its own for the common 2x2.
struct Window {
  long height, width, stride;  // of a row of windows that lie wholly within the image
};

template <class T, bool RECORD>
inline void pool_max(const typename Lanes<T>::Vector* from, long row_step, Window w, long count,
                     typename Lanes<T>::Vector* out, typename Lanes<T>::Index* chosen) {
  typedef typename Lanes<T>::Vector Vector;
  typedef typename Lanes<T>::Mask Mask;
  for (long x = 0; x < count; x++) {
    const Vector* corner = from + x * w.stride;
    Vector value = corner[0];
    Mask best{};
    for (long v = 0; v < w.height; v++)
      for (long u = 0; u < w.width; u++) {
        const Vector other = corner[v * row_step + u];
        const Mask better = (other > value) | (other != other);
        value = better ? other : value;
        if (RECORD) best = better ? number<T>(v * w.width + u) : best;
      }
    out[x] = value;
    if (RECORD) chosen[x] = __builtin_convertvector(best, typename Lanes<T>::Index);
  }
}

template <class T>
inline void unpool_max(const typename Lanes<T>::Vector* d_out,
                       const typename Lanes<T>::Index* chosen, Window w, long count,
                       typename Lanes<T>::Vector* d, long row_step) {
  typedef typename Lanes<T>::Vector Vector;
  typedef typename Lanes<T>::Mask Mask;
  for (long x = 0; x < count; x++) {
    const Mask best = __builtin_convertvector(chosen[x], Mask);
    for (long v = 0; v < w.height; v++)
      for (long u = 0; u < w.width; u++)
        d[v * row_step + x * w.stride + u] =
            best == number<T>(v * w.width + u) ? d_out[x] : Vector{};
  }
}

// Where one block finds its numbers in a thread's workspace.
template <class T>
struct Place {
  typedef typename Lanes<T>::Vector Vector;
  typedef typename Lanes<T>::Index Index;
  Vector* input;      // [samples][C][H + 2 pad][W + 2 pad]
  Vector* d_input;    // likewise: the gradient
  Vector* before;     // [samples][F][OH][OW]: what the activation read; only where it is needed
  Index* chosen;      // [samples][F][PH][PW]: which of a window's values is the largest
  long band_rows;     // rows of the convolution's output worked on at a time
};

// One thread's workspace for networks of one shape, and what it does with them.
template <class T>
class Worker {
  typedef typename Lanes<T>::Vector Vector;
  typedef typename Lanes<T>::Index Index;
  typedef typename Lanes<T>::Mask Mask;
  static constexpr int LANES = Lanes<T>::COUNT;

 public:
  explicit Worker(const Network& network, bool backward) : net_(network), backward_(backward) {
    samples_ = samples_at_a_time(network, backward);
    bytes_ = lay_out(nullptr);
  }
  ~Worker() { std::free(memory_); }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  long bytes() const { return bytes_; }

  // Allocates all memory; false where there is not enough.
  bool allocate() {
    memory_ = static_cast<char*>(std::aligned_alloc(64, bytes_));
    if (memory_ == nullptr) return false;
    lay_out(memory_);
    std::memset(memory_, 0, bytes_);  // the borders stay zero from here on
    return true;
  }

  // Trains the networks in the lanes on one batch; see `Optimizer`.
  void step(const Images& images, long from, long to, Vector* weights, Vector* state,
            const Optimizer& optimizer, long steps_before) {
    gradients(images, from, to, weights, optimizer.label_smoothing, nullptr);
    update(weights, state, optimizer, steps_before + 1);
  }

  // The gradient of the mean loss over one batch into `gradient_` (and `out`, where asked for).
  void gradients(const Images& images, long from, long to, const Vector* weights,
                 double label_smoothing, Vector* out) {
    std::memset(gradient_, 0, net_.weights * sizeof(Vector));
    for (long first = from; first < to; first += samples_) {
      const long count = smaller(samples_, to - first);
      forward(images, first, count, weights, true);
      for (long s = 0; s < count; s++)
        loss_gradient(images, first + s, s, T(label_smoothing), T(1) / T(to - from));
      for (long i = net_.count - 1; i >= 0; i--) backward(i, count, weights);
    }
    if (out != nullptr) std::memcpy(out, gradient_, net_.weights * sizeof(Vector));
  }

  // Adds up loss (nats) and number of right answers over some images, and over each block of them.
  void evaluate(const Images& images, long from, long to, const Vector* weights, const Unit& unit) {
    for (long first = from; first < to; first += samples_) {
      const long count = smaller(samples_, to - first);
      forward(images, first, count, weights, false);
      for (long s = 0; s < count; s++) judge(images, first + s, s, unit);
    }
  }

  // The networks' outputs, [to - from][outputs] vectors.
  void outputs(const Images& images, long from, long to, const Vector* weights, Vector* out) {
    const long size = net_.outputs;
    for (long first = from; first < to; first += samples_) {
      const long count = smaller(samples_, to - first);
      forward(images, first, count, weights, false);
      std::memcpy(out + (first - from) * size, logits_, count * size * sizeof(Vector));
    }
  }

 private:
  // As many samples as keep their activations in the second-level cache, but enough that a weight
  // which is read once per sample (linear layers) is used a few times.
  static long samples_at_a_time(const Network& net, bool backward) {
    long vectors = 1;
    for (long i = 0; i < net.count; i++) {
      const Block& b = net.blocks[i];
      vectors += b.input_size() * (backward ? 2 : 1);
      if (backward && b.keeps_before) vectors += b.conv_size();
    }
    return larger(4, smaller(32, 384 * 1024 / (vectors * long(sizeof(Vector)))));
  }

  // Gives every buffer its place from `base` on; returns the bytes of all of them.
  long lay_out(char* base) {
    char* next = base;
    auto take = [&next](long bytes) {
      char* here = next;
      next += divide_up(bytes, 64) * 64;
      return here;
    };
    auto vectors = [&](long count) { return reinterpret_cast<Vector*>(take(count * sizeof(Vector))); };
    long scratch = 1, widest = 1;
    for (long i = 0; i < net_.count; i++) {
      const Block& b = net_.blocks[i];
      Place<T>& place = places_[i];
      place.input = vectors(samples_ * b.input_size());
      place.d_input = backward_ && i > 0 ? vectors(samples_ * b.input_size()) : nullptr;
      place.before = nullptr;
      if (backward_ && b.keeps_before)
        place.before = b.has_conv ? vectors(samples_ * b.conv_size()) : place.input;
      place.chosen = backward_ && b.pool == Pool::max
                         ? reinterpret_cast<Index*>(take(samples_ * b.output_size() * sizeof(Index)))
                         : nullptr;
      place.band_rows = rows_at_a_time(b);
      const long at_once = by_sample(b) ? samples_ * b.conv_size() : b.F * place.band_rows * b.OW;
      scratch = larger(scratch, at_once);
      widest = larger(widest, larger(b.OW, b.PW));
    }
    scratch_ = vectors(scratch);
    row_ = vectors(widest);
    logits_ = vectors(samples_ * net_.outputs);
    d_logits_ = vectors(samples_ * net_.outputs);
    gradient_ = backward_ ? vectors(net_.weights) : nullptr;
    padded_ = reinterpret_cast<T*>(take(samples_ * net_.blocks[0].input_size() * sizeof(T)));
    return larger(next - base, 64);
  }

  // Bands must not cut a pooling window; where windows overlap there is one band.
  static long rows_at_a_time(const Block& b) {
    if (b.pool == Pool::none) {
      return larger(1, smaller(b.OH, BAND_BYTES / (b.F * b.OW * long(sizeof(Vector)))));
    }
    if (!b.pools_apart()) return b.OH;
    const long windows = BAND_BYTES / (b.F * b.OW * b.pool_h * long(sizeof(Vector)));
    return b.pool_h * larger(1, smaller(windows, b.PH));
  }

  // Whether tiles run along the samples rather than along a row: for rows too short to fill one.
  static bool by_sample(const Block& b) { return b.has_conv && b.OW < 4; }

  Vector* output_of(long i) { return i + 1 < net_.count ? places_[i + 1].input : logits_; }
  Vector* d_output_of(long i) { return i + 1 < net_.count ? places_[i + 1].d_input : d_logits_; }

  // The border that the next block wants around this one's output.
  Frame frame_after(long i) const {
    if (i + 1 == net_.count) return Frame{0, 0, net_.outputs};
    const Block& next = net_.blocks[i + 1];
    return Frame{next.pad_h, next.pad_w, next.input_size()};
  }

  // Where block i reads sample s: shared images as plain numbers, all else as vectors.
  bool reads_numbers(long i, const Images& images) const {
    return i == 0 && images.shared && net_.blocks[0].has_conv;
  }

  void forward(const Images& images, long first, long count, const Vector* weights, bool record) {
    const Block& b = net_.blocks[0];
    const long pixels = b.C * b.H * b.W;
    numbers_ = nullptr;
    if (reads_numbers(0, images)) {
      const T* source = static_cast<const T*>(images.pixels) + first * pixels;
      numbers_ = b.pad_h || b.pad_w ? padded_ : source;
      if (numbers_ == padded_)
        for (long s = 0; s < count; s++)
          frame_in(b, source + s * pixels, padded_ + s * b.input_size());
    } else if (images.shared) {
      const T* source = static_cast<const T*>(images.pixels) + first * pixels;
      for (long s = 0; s < count; s++)
        frame_in(b, source + s * pixels, places_[0].input + s * b.input_size());
    } else {
      const Vector* source = static_cast<const Vector*>(images.pixels) + first * pixels;
      for (long s = 0; s < count; s++)
        frame_in(b, source + s * pixels, places_[0].input + s * b.input_size());
    }
    for (long i = 0; i < net_.count; i++) forward_block(i, count, weights, record);
  }

  // Copies one image into the middle of its padded place; plain numbers go to all lanes.
  template <class From, class To>
  static void frame_in(const Block& b, const From* from, To* to) {
    const long width = b.W + 2 * b.pad_w, height = b.H + 2 * b.pad_h;
    for (long c = 0; c < b.C; c++)
      for (long y = 0; y < b.H; y++)
        for (long x = 0; x < b.W; x++)
          to[(c * height + y + b.pad_h) * width + x + b.pad_w] = from[(c * b.H + y) * b.W + x] - To{};
  }

  // Where a block's convolution writes, or its input where it has none: [F][rows][OW] by strides.
  struct Plane {
    Vector* at;
    long sample_step, filter_step, row_step;
  };

  // The part of a block's output that begins at one sample and row, as a Plane.
  Plane output_plane(long i, long s, long row) {
    const Block& b = net_.blocks[i];
    const Frame frame = frame_after(i);
    const long width = b.PW + 2 * frame.pad_w, height = b.PH + 2 * frame.pad_h;
    Vector* at = output_of(i) + s * frame.size() + frame.at(b, 0, row, 0);
    return Plane{at, frame.size(), height * width, width};
  }

  void forward_block(long i, long count, const Vector* weights, bool record) {
    const Block& b = net_.blocks[i];
    const Place<T>& place = places_[i];
    const bool keeps = record && place.before;
    // Without pooling there is nothing to do between convolution and output but to activate it.
    const bool direct = b.has_conv && b.pool == Pool::none && !keeps;
    if (by_sample(b)) {
      Plane plane{keeps ? place.before : scratch_, b.conv_size(), b.OH * b.OW, b.OW};
      if (direct) plane = output_plane(i, 0, 0);
      if (i == 0 && numbers_)
        convolve_by_sample(b, numbers_, count, weights, plane);
      else
        convolve_by_sample(b, (const Vector*)place.input, count, weights, plane);
      for (long s = 0; s < count; s++, plane.at += plane.sample_step)
        finish(i, s, plane, 0, b.OH, record);
      return;
    }
    for (long s = 0; s < count; s++) {
      for (long row = 0; row < b.used_rows(); row += place.band_rows) {
        const long rows = smaller(place.band_rows, b.used_rows() - row);
        Plane plane{scratch_, 0, rows * b.OW, b.OW};
        Vector* input = place.input + s * b.input_size();
        if (!b.has_conv)
          plane = Plane{input + row * b.OW, 0, b.OH * b.OW, b.OW};
        else if (direct)
          plane = output_plane(i, s, row);
        else if (keeps)
          plane = Plane{place.before + s * b.conv_size() + row * b.OW, 0, b.OH * b.OW, b.OW};
        if (i == 0 && numbers_)
          convolve(b, numbers_ + s * b.input_size(), row, rows, weights, plane);
        else if (b.has_conv)
          convolve(b, (const Vector*)input, row, rows, weights, plane);
        finish(i, s, plane, row, rows, record);
      }
    }
  }

  template <class A>
  void reduction(const Block& b, Product<T, A>& o) const {
    const long width = b.W + 2 * b.pad_w, height = b.H + 2 * b.pad_h;
    o.loops[0] = Loop{b.C, height * width, b.KH * b.KW};
    o.loops[1] = Loop{b.KH, b.dilation_h * width, b.KW};
    o.loops[2] = Loop{b.KW, b.dilation_w, 1};
    if (b.KH == 1 && b.KW == 1) {  // the only long loop must be the innermost
      o.loops[2] = o.loops[0];
      o.loops[0] = Loop{1, 0, 0};
    }
  }

  // Rows `row` … `row + rows` of a convolution's output for one sample.
  template <class A>
  void convolve(const Block& b, const A* input, long row, long rows, const Vector* weights,
                const Plane& out) const {
    const long width = b.W + 2 * b.pad_w;
    Product<T, A> o;
    o.a = input + row * b.stride_h * width;
    o.a_step = b.stride_w;
    o.b = weights + b.weight_at;
    o.b_step = b.filter_size();
    reduction(b, o);
    o.first = b.has_bias ? weights + b.bias_at : &zero_;
    o.first_p = 0;
    o.first_q = b.has_bias ? 1 : 0;
    o.out = out.at;
    o.out_p = 1;
    o.out_q = out.filter_step;
    multiply(o, b.OW, b.F, Rows{rows, b.stride_h * width, out.row_step});
  }

  // The same for all rows of all samples, tiles running along the samples.
  template <class A>
  void convolve_by_sample(const Block& b, const A* input, long count, const Vector* weights,
                          const Plane& out) const {
    const long width = b.W + 2 * b.pad_w;
    for (long y = 0; y < b.OH; y++) {
      Product<T, A> o;
      o.a = input + y * b.stride_h * width;
      o.a_step = b.input_size();
      o.b = weights + b.weight_at;
      o.b_step = b.filter_size();
      reduction(b, o);
      o.first = b.has_bias ? weights + b.bias_at : &zero_;
      o.first_p = 0;
      o.first_q = b.has_bias ? 1 : 0;
      o.out = out.at + y * out.row_step;
      o.out_p = out.sample_step;
      o.out_q = out.filter_step;
      multiply(o, count, b.F, Rows{b.OW, b.stride_w, 1});
    }
  }

  // Activation and pooling of some rows of one sample, into the next block's input.
  void finish(long i, long s, Plane before, long row, long rows, bool record) {
    const Block& b = net_.blocks[i];
    if (b.pool == Pool::none) {
      const Plane out = output_plane(i, s, row);
      for (long f = 0; f < b.F; f++)
        for (long y = 0; y < rows; y++)
          activate<T>(b, before.at + f * before.filter_step + y * before.row_step,
                      out.at + f * out.filter_step + y * out.row_step, b.OW);
      return;
    }
    const bool activate_first =
        !b.activates_after_pool() && b.activation != Activation::identity;
    if (activate_first) {  // into the scratch band: the backward pass needs them unchanged
      const Plane band{scratch_, 0, rows * b.OW, b.OW};
      for (long f = 0; f < b.F; f++)
        for (long y = 0; y < rows; y++)
          activate<T>(b, before.at + f * before.filter_step + y * before.row_step,
                      band.at + f * band.filter_step + y * band.row_step, b.OW);
      before = band;
    }
    const long from = row / b.pool_stride_h, to = pooled_end(b, row, rows);
    for (long f = 0; f < b.F; f++) {
      const Vector* plane = before.at + f * before.filter_step;
      const Plane out = output_plane(i, s, from);
      Index* chosen = record && places_[i].chosen
                          ? places_[i].chosen + s * b.output_size() + f * b.PH * b.PW
                          : nullptr;
      for (long y = from; y < to; y++) {
        Vector* to_row = out.at + f * out.filter_step + (y - from) * out.row_step;
        pool_row(b, plane, before.row_step, row, y, to_row, chosen ? chosen + y * b.PW : nullptr);
        if (!activate_first) activate<T>(b, to_row, to_row, b.PW);
      }
    }
  }

  static long pooled_end(const Block& b, long row, long rows) {
    return row + rows >= b.used_rows() ? b.PH : (row + rows) / b.pool_stride_h;
  }

  // Row y of the pooled image from a plane whose first row is `row` of the image.
  static void pool_row(const Block& b, const Vector* plane, long row_step, long row, long y,
                       Vector* out, Index* chosen) {
    if (b.pool == Pool::max && b.pools_apart()) {
      const Vector* from = plane + (y * b.pool_h - row) * row_step;
      const Window window{b.pool_h, b.pool_w, b.pool_w};
      if (b.pool_h == 2 && b.pool_w == 2) {
        if (chosen)
          pool_max<T, true>(from, row_step, Window{2, 2, 2}, b.PW, out, chosen);
        else
          pool_max<T, false>(from, row_step, Window{2, 2, 2}, b.PW, out, chosen);
      } else if (chosen) {
        pool_max<T, true>(from, row_step, window, b.PW, out, chosen);
      } else {
        pool_max<T, false>(from, row_step, window, b.PW, out, chosen);
      }
      return;
    }
    const Span ys = b.window_rows(y);
    for (long x = 0; x < b.PW; x++) {
      const Span xs = b.window_columns(x);
      const Vector* corner = plane + (ys.from - row) * row_step + xs.from;
      Vector value = b.pool == Pool::max ? corner[0] : Vector{};
      Mask best = number<T>(ys.skipped * b.pool_w + xs.skipped);
      for (long v = 0; v < ys.to - ys.from; v++)
        for (long u = 0; u < xs.to - xs.from; u++) {
          const Vector other = corner[v * row_step + u];
          if (b.pool == Pool::average) {
            value += other;
            continue;
          }
          const Mask better = (other > value) | (other != other);
          value = better ? other : value;
          best = better ? number<T>((v + ys.skipped) * b.pool_w + u + xs.skipped) : best;
        }
      if (b.pool == Pool::average) value *= T(1) / T(b.divisor(ys, xs));
      out[x] = value;
      if (chosen) chosen[x] = __builtin_convertvector(best, Index);
    }
  }

  // The gradient of cross-entropy with label smoothing (torch's definition) times `scale`.
  void loss_gradient(const Images& images, long image, long s, T smoothing, T scale) {
    const long classes = net_.outputs;
    Vector* d = d_logits_ + s * classes;
    softmax(logits_ + s * classes, d);
    for (long c = 0; c < classes; c++) d[c] = (d[c] - smoothing / T(classes)) * scale;
    for (int lane = 0; lane < LANES; lane++)
      d[images.label(image, lane, LANES)][lane] -= (1 - smoothing) * scale;
  }

  void softmax(const Vector* logits, Vector* out) const {
    const Vector top = largest(logits);
    Vector sum{};
    for (long c = 0; c < net_.outputs; c++) {
      out[c] = each_lane<T>(logits[c] - top, [](T v) { return std::exp(v); });
      sum += out[c];
    }
    for (long c = 0; c < net_.outputs; c++) out[c] /= sum;
  }

  Vector largest(const Vector* logits) const {
    Vector top = logits[0];
    for (long c = 1; c < net_.outputs; c++) top = logits[c] > top ? logits[c] : top;
    return top;
  }

  void judge(const Images& images, long image, long s, const Unit& unit) const {
    const long classes = net_.outputs;
    const long block = unit.blocks == nullptr ? 0 : (1 + unit.blocks[image]) * LANES;
    const Vector* logits = logits_ + s * classes;
    const Vector top = largest(logits);
    for (int lane = 0; lane < LANES; lane++) {
      const long label = images.label(image, lane, LANES);
      double sum = 0;
      long answer = 0;
      for (long c = 0; c < classes; c++) {
        const T value = logits[c][lane];
        sum += std::exp(value - top[lane]);
        // The first largest, NaN above all: as torch.argmax.
        const T best = logits[answer][lane];
        if (value > best || (value != value && best == best)) answer = c;
      }
      // The difference first: beside a large logit the logarithm would lose its digits.
      const double loss = std::log(sum) + double(top[lane] - logits[label][lane]);
      unit.loss[lane] += loss;
      unit.right[lane] += answer == label;
      if (block == 0) continue;
      unit.loss[block + lane] += loss;
      unit.right[block + lane] += answer == label;
    }
  }

  void backward(long i, long count, const Vector* weights) {
    const Block& b = net_.blocks[i];
    const Place<T>& place = places_[i];
    if (place.d_input)
      std::memset(place.d_input, 0, count * b.input_size() * sizeof(Vector));
    if (by_sample(b)) {
      for (long s = 0; s < count; s++)
        unfinish(i, s, scratch_ + s * b.conv_size(), b.OH * b.OW, 0, b.OH);
      if (i == 0 && numbers_)
        weight_gradient(b, numbers_, scratch_, b.OH * b.OW, Loop{count, b.input_size(), b.conv_size()},
                        0, b.OH);
      else
        weight_gradient(b, (const Vector*)place.input, scratch_, b.OH * b.OW,
                        Loop{count, b.input_size(), b.conv_size()}, 0, b.OH);
      if (place.d_input) input_gradient_by_sample(b, scratch_, count, weights, place.d_input);
      return;
    }
    for (long s = 0; s < count; s++) {
      for (long row = 0; row < b.used_rows(); row += place.band_rows) {
        const long rows = smaller(place.band_rows, b.used_rows() - row);
        unfinish(i, s, scratch_, rows * b.OW, row, rows);
        Vector* d_input = place.d_input ? place.d_input + s * b.input_size() : nullptr;
        if (!b.has_conv) {
          if (d_input)
            for (long f = 0; f < b.F; f++)
              std::memcpy(d_input + (f * b.OH + row) * b.OW, scratch_ + f * rows * b.OW,
                          rows * b.OW * sizeof(Vector));
          continue;
        }
        const Loop once{1, 0, 0};
        if (i == 0 && numbers_)
          weight_gradient(b, numbers_ + s * b.input_size(), scratch_, rows * b.OW, once, row, rows);
        else
          weight_gradient(b, (const Vector*)place.input + s * b.input_size(), scratch_, rows * b.OW,
                          once, row, rows);
        if (d_input) input_gradient(b, scratch_, row, rows, weights, d_input);
      }
    }
  }

  // The gradient of what `finish` read, [F][rows][OW], from the gradient of what it wrote.
  void unfinish(long i, long s, Vector* d, long filter_step, long row, long rows) {
    const Block& b = net_.blocks[i];
    const Place<T>& place = places_[i];
    const Frame frame = frame_after(i);
    const Vector* out = output_of(i) + s * frame.size();
    const Vector* d_out = d_output_of(i) + s * frame.size();
    const Vector* before = place.before ? place.before + s * b.conv_size() + row * b.OW : nullptr;
    if (b.pool == Pool::none) {
      for (long f = 0; f < b.F; f++)
        for (long y = 0; y < rows; y++) {
          const long at = frame.at(b, f, row + y, 0);
          Vector* target = d + f * filter_step + y * b.OW;
          std::memcpy(target, d_out + at, b.OW * sizeof(Vector));
          times_slope<T>(b, target, before ? before + (f * b.OH + y) * b.OW : nullptr, out + at,
                         b.OW);
        }
      return;
    }
    const bool after = b.activates_after_pool();
    if (!b.pools_all())
      for (long f = 0; f < b.F; f++)
        std::memset(d + f * filter_step, 0, rows * b.OW * sizeof(Vector));
    const long from = row / b.pool_stride_h, to = pooled_end(b, row, rows);
    for (long f = 0; f < b.F; f++) {
      const Index* chosen =
          place.chosen ? place.chosen + s * b.output_size() + f * b.PH * b.PW : nullptr;
      for (long y = from; y < to; y++) {
        const long at = frame.at(b, f, y, 0);
        const Vector* d_row = d_out + at;
        if (after) {
          std::memcpy(row_, d_row, b.PW * sizeof(Vector));
          times_slope<T>(b, row_, nullptr, out + at, b.PW);
          d_row = row_;
        }
        unpool_row(b, d_row, chosen ? chosen + y * b.PW : nullptr, d + f * filter_step, row, y);
      }
    }
    if (after || b.activation == Activation::identity) return;
    for (long f = 0; f < b.F; f++)
      for (long y = 0; y < rows; y++) {
        const Vector* x = before + (f * b.OH + y) * b.OW;
        activate<T>(b, x, row_, b.OW);
        times_slope<T>(b, d + f * filter_step + y * b.OW, x, row_, b.OW);
      }
  }

  // Spreads the gradient of row y of the pooled image over a plane whose first row is `row`.
  static void unpool_row(const Block& b, const Vector* d_out, const Index* chosen, Vector* plane,
                         long row, long y) {
    if (b.pool == Pool::max && b.pools_apart()) {
      Vector* to = plane + (y * b.pool_h - row) * b.OW;
      if (b.pool_h == 2 && b.pool_w == 2)
        unpool_max<T>(d_out, chosen, Window{2, 2, 2}, b.PW, to, b.OW);
      else
        unpool_max<T>(d_out, chosen, Window{b.pool_h, b.pool_w, b.pool_w}, b.PW, to, b.OW);
      return;
    }
    const Span ys = b.window_rows(y);
    for (long x = 0; x < b.PW; x++) {
      const Span xs = b.window_columns(x);
      Vector value = d_out[x];
      Mask best{};
      if (b.pool == Pool::max)
        best = __builtin_convertvector(chosen[x], Mask);
      else
        value *= T(1) / T(b.divisor(ys, xs));
      for (long v = ys.from; v < ys.to; v++)
        for (long u = xs.from; u < xs.to; u++) {
          const long place = (v - ys.from + ys.skipped) * b.pool_w + u - xs.from + xs.skipped;
          Vector& target = plane[(v - row) * b.OW + u];
          const Vector part =
              b.pool == Pool::max ? (best == number<T>(place) ? value : Vector{}) : value;
          target = b.pools_all() ? part : target + part;
        }
    }
  }

  // Adds the gradients of weights and bias over some rows (and samples) of the output's gradient.
  template <class A>
  void weight_gradient(const Block& b, const A* input, const Vector* d, long filter_step,
                       Loop samples, long row, long rows) {
    const long width = b.W + 2 * b.pad_w, plane = (b.H + 2 * b.pad_h) * width;
    if (b.has_bias) {
      for (long f = 0; f < b.F; f++) {
        Vector sum = gradient_[b.bias_at + f];
        for (long s = 0; s < samples.count; s++)
          for (long k = 0; k < rows * b.OW; k++) sum += d[s * samples.b + f * filter_step + k];
        gradient_[b.bias_at + f] = sum;
      }
    }
    Product<T, A> o;
    o.b_step = filter_step;
    o.loops[0] = samples;
    o.loops[1] = Loop{rows, b.stride_h * width, b.OW};
    o.loops[2] = Loop{b.OW, b.stride_w, 1};
    if (rows * b.OW == 1) {
      o.loops[2] = o.loops[0];
      o.loops[0] = Loop{1, 0, 0};
    }
    o.b = d;
    o.out_q = b.filter_size();
    // Tiles run along a kernel's row, or along the channels where that is one weight wide.
    const bool along_row = b.KW > 1;
    const long tiles = along_row ? b.C : 1;
    o.a_step = along_row ? b.dilation_w : plane;
    o.out_p = along_row ? 1 : b.KH * b.KW;
    for (long c = 0; c < tiles; c++) {
      for (long k = 0; k < b.KH; k++) {
        o.a = input + c * plane + (row * b.stride_h + k * b.dilation_h) * width;
        o.out = gradient_ + b.weight_at + (c * b.KH + k) * b.KW;
        o.first = o.out;
        o.first_p = o.out_p;
        o.first_q = o.out_q;
        multiply(o, along_row ? b.KW : b.C, b.F);
      }
    }
  }

  // Adds to the gradient of one sample's input: one product for each row and weight of a kernel.
  void input_gradient(const Block& b, const Vector* d, long row, long rows, const Vector* weights,
                      Vector* d_input) const {
    const long width = b.W + 2 * b.pad_w, plane = (b.H + 2 * b.pad_h) * width;
    for (long k = 0; k < b.KH; k++) {
      for (long l = 0; l < b.KW; l++) {
        Product<T, Vector> o;
        o.a = d;
        o.a_step = 1;
        o.b = weights + b.weight_at + k * b.KW + l;
        o.b_step = b.KH * b.KW;
        o.loops[0] = o.loops[1] = Loop{1, 0, 0};
        o.loops[2] = Loop{b.F, rows * b.OW, b.filter_size()};
        o.out = d_input + (row * b.stride_h + k * b.dilation_h) * width + l * b.dilation_w;
        o.out_p = b.stride_w;
        o.out_q = plane;
        o.first = o.out;
        o.first_p = o.out_p;
        o.first_q = o.out_q;
        multiply(o, b.OW, b.C, Rows{rows, b.OW, b.stride_h * width});
      }
    }
  }

  void input_gradient_by_sample(const Block& b, const Vector* d, long count, const Vector* weights,
                                Vector* d_input) const {
    const long width = b.W + 2 * b.pad_w, plane = (b.H + 2 * b.pad_h) * width;
    for (long y = 0; y < b.OH; y++)
      for (long x = 0; x < b.OW; x++)
        for (long k = 0; k < b.KH; k++)
          for (long l = 0; l < b.KW; l++) {
            Product<T, Vector> o;
            o.a = d + y * b.OW + x;
            o.a_step = b.conv_size();
            o.b = weights + b.weight_at + k * b.KW + l;
            o.b_step = b.KH * b.KW;
            o.loops[0] = o.loops[1] = Loop{1, 0, 0};
            o.loops[2] = Loop{b.F, b.OH * b.OW, b.filter_size()};
            o.out = d_input + (y * b.stride_h + k * b.dilation_h) * width + x * b.stride_w +
                    l * b.dilation_w;
            o.out_p = b.input_size();
            o.out_q = plane;
            o.first = o.out;
            o.first_p = o.out_p;
            o.first_q = o.out_q;
            multiply(o, count, b.C);
          }
  }

  void update(Vector* weights, Vector* state, const Optimizer& o, long step) {
    const long count = net_.weights;
    if (o.gradient_clip > 0) {
      Vector squares{};
      for (long i = 0; i < count; i++) squares += gradient_[i] * gradient_[i];
      const Vector factor = each_lane<T>(squares, [&](T v) {
        const T share = T(o.gradient_clip) / (std::sqrt(v) + T(1e-6));
        return share > 1 ? T(1) : share;
      });
      for (long i = 0; i < count; i++) gradient_[i] *= factor;
    }
    const T rate = T(o.learning_rate), decay = T(o.weight_decay);
    if (o.kind == Optimizer::sgd) {
      const T momentum = T(o.momentum);
      for (long i = 0; i < count; i++) {
        state[i] = momentum * state[i] + (gradient_[i] + decay * weights[i]);
        weights[i] -= rate * state[i];
      }
      return;
    }
    const bool decoupled = o.kind == Optimizer::adamw;
    // 1 - beta is rounded once, as in PyTorch: 1 - float(0.999) is off by 1e-5.
    const T beta2 = T(0.999), rest1 = T(1 - 0.9), rest2 = T(1 - 0.999), epsilon = T(1e-8);
    const T size = T(o.learning_rate / (1 - std::pow(0.9, double(step))));
    const T root = T(std::sqrt(1 - std::pow(0.999, double(step))));
    Vector *mean = state, *square = state + count;
    for (long i = 0; i < count; i++) {
      Vector g = gradient_[i];
      if (decoupled)
        weights[i] *= 1 - rate * decay;
      else
        g += decay * weights[i];
      mean[i] += (g - mean[i]) * rest1;
      square[i] = beta2 * square[i] + rest2 * g * g;
      const Vector spread = each_lane<T>(square[i], [](T v) { return std::sqrt(v); });
      weights[i] -= size * mean[i] / (spread / root + epsilon);
    }
  }

  const Network& net_;
  const bool backward_;
  long samples_ = 0, bytes_ = 0;
  char* memory_ = nullptr;
  Place<T> places_[MOST_BLOCKS];
  Vector *scratch_ = nullptr, *row_ = nullptr, *logits_ = nullptr, *d_logits_ = nullptr, *gradient_ = nullptr;
  T* padded_ = nullptr;
  const T* numbers_ = nullptr;
  const Vector zero_{};
};

template <class T>
struct Running {
  const Job* job;
  bool failed;
};

template <class T>
void run_unit(Worker<T>& worker, const Job& job, Unit& unit) {
  typedef typename Lanes<T>::Vector Vector;
  Vector* weights = static_cast<Vector*>(unit.weights);
  Vector* out = static_cast<Vector*>(unit.out);
  switch (job.task) {
    case Task::train: {
      long steps = unit.steps_before;
      for (long from = 0; from < job.images; from += job.batch_size)
        worker.step(unit.images, from, smaller(job.images, from + job.batch_size), weights,
                    static_cast<Vector*>(unit.state), job.optimizer, steps++);
      break;
    }
    case Task::evaluate:
      worker.evaluate(unit.images, 0, job.images, weights, unit);
      break;
    case Task::gradients:
      worker.gradients(unit.images, 0, job.images, weights, job.optimizer.label_smoothing, out);
      break;
    case Task::outputs:
      worker.outputs(unit.images, 0, job.images, weights, out);
      break;
  }
}

template <class T>
void run_share(void* context, long share) {
  Running<T>& running = *static_cast<Running<T>*>(context);
  const Job& job = *running.job;
  const bool backward = job.task == Task::train || job.task == Task::gradients;
#ifdef TRUEORACLE_X86
  // Numbers too small for a normal float count as zero: a hundredfold slower otherwise.
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);
#endif
  {
    Worker<T> worker(*job.network, backward);
    if (!worker.allocate())
      running.failed = true;
    else
      for (long unit = share; unit < job.unit_count; unit += job.threads)
        run_unit(worker, job, job.units[unit]);
  }
#ifdef TRUEORACLE_X86
  _mm_setcsr(before);
#endif
}

template <class T>
bool run(const Job& job) {
  Running<T> running{&job, false};
  in_parallel(job.threads, job.threads, run_share<T>, &running);
  return !running.failed;
}

template <class T>
long bytes(const Network& network, bool backward) {
  return Worker<T>(network, backward).bytes();
}

}  // namespace INSTRUCTIONS
}  // namespace trueoracle

#define TRUEORACLE_KERNEL(name)                                                              \
  {                                                                                          \
    name, INSTRUCTIONS::Lanes<float>::COUNT, INSTRUCTIONS::Lanes<double>::COUNT,             \
        INSTRUCTIONS::run<float>, INSTRUCTIONS::run<double>, INSTRUCTIONS::bytes<float>,     \
        INSTRUCTIONS::bytes<double>                                                          \
  }
