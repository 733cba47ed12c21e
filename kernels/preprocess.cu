// preprocess_{f32,f16,i8}: uint8 NHWC image -> resize -> letterbox -> normalise -> NCHW tensor, in one pass.
//
// Launch: block (32, 8), grid (ceil(dst_w / 32), ceil(dst_h / 8), n). Any grid is correct, since y and image stride
// over it, as long as grid.x * 32 >= dst_w. One thread makes one output pixel, all channels. Nothing is shared.
//
//   src          first byte of the first pixel; image i, row y, pixel x begin at i*image_bytes + y*row_bytes + x*pixel_bytes
//   dst          [n, channels, dst_h, dst_w], contiguous
//   pixel_bytes  3 or 4 (BGRx, RGBA: the fourth byte is not read) for three channels, 1 for one
//   channels     1 or 3
//   reverse      1: the first output channel is the third byte of a pixel (BGR to RGB, or back)
//   box_*        where the resized image lies in the output; all of it for a plain resize
//   pad          grey level 0..255 outside the box, normalised like a pixel
//   antialias    0: bilinear with half-pixel centres (torch interpolate(align_corners=False), OpenCV INTER_LINEAR)
//                1: triangle filter widened by the scale when shrinking (PIL BILINEAR, torchvision antialias=True)
//   a*, b*       per output channel: value = pixel * a + b, so a = 1 / (255 * std), b = -mean / std
//   scale, zero  int8 only: q = clamp(round_half_even(value / scale) + zero, -128, 127), as ONNX QuantizeLinear
#include "edge.cuh"

namespace {

struct Image {
  const byte_t* data;
  int h, w;
  long long row_bytes;
  int pixel_bytes;

  // Byte `byte` of pixel (y, x). 64 bits: a pitch times a row passes 2^31 long before a frame is unusual.
  __device__ float at(int y, int x, int byte) const {
    return static_cast<float>(data[y * row_bytes + static_cast<long long>(x) * pixel_bytes + byte]);
  }
};

struct Taps {  // the source indices [low, high) that one output index reads, and the filter over them
  int low, high;
  float centre, support;

  // `index` of `box` output indices over `extent` source indices.
  __device__ Taps(int index, int box, int extent) {
    const float scale = static_cast<float>(extent) / static_cast<float>(box);
    support = fmaxf(scale, 1.0f);
    centre = (static_cast<float>(index) + 0.5f) * scale;
    low = max(static_cast<int>(centre - support + 0.5f), 0);
    high = min(static_cast<int>(centre + support + 0.5f), extent);
  }

  __device__ float weight(int j) const {
    return fmaxf(1.0f - fabsf((static_cast<float>(j) - centre + 0.5f) / support), 0.0f);
  }
};

struct Pair {  // two neighbouring source indices and the weight of the second
  int first, second;
  float weight;

  __device__ Pair(int index, int box, int extent) {
    const float scale = static_cast<float>(extent) / static_cast<float>(box);
    const float at = fmaxf((static_cast<float>(index) + 0.5f) * scale - 0.5f, 0.0f);
    first = min(static_cast<int>(at), extent - 1);
    second = min(first + 1, extent - 1);
    weight = at - static_cast<float>(first);
  }
};

__device__ float mix(float a, float b, float weight) { return a + (b - a) * weight; }  // exact where a == b

template <int C>
__device__ void bilinear(const Image& image, const Pair& y, const Pair& x, int reverse, float* value) {
  for (int c = 0; c < C; ++c) {
    const int byte = reverse ? C - 1 - c : c;
    const float top = mix(image.at(y.first, x.first, byte), image.at(y.first, x.second, byte), x.weight);
    const float bottom = mix(image.at(y.second, x.first, byte), image.at(y.second, x.second, byte), x.weight);
    value[c] = mix(top, bottom, y.weight);
  }
}

template <int C>
__device__ void filtered(const Image& image, const Taps& y, const Taps& x, int reverse, float* value) {
  float total_y = 0.0f, total_x = 0.0f;
  for (int c = 0; c < C; ++c) value[c] = 0.0f;
  ROLLED for (int i = x.low; i < x.high; ++i) total_x += x.weight(i);
  ROLLED for (int j = y.low; j < y.high; ++j) {
    float row[C] = {};
    ROLLED for (int i = x.low; i < x.high; ++i) {
      const float weight = x.weight(i);
      for (int c = 0; c < C; ++c) row[c] += weight * image.at(j, i, reverse ? C - 1 - c : c);
    }
    const float weight = y.weight(j);
    total_y += weight;
    for (int c = 0; c < C; ++c) value[c] += weight * row[c];
  }
  for (int c = 0; c < C; ++c) value[c] /= total_y * total_x;
}

struct Plan {  // everything that is the same for every pixel
  int n, reverse, dst_h, dst_w, box_top, box_left, box_h, box_w, pad, antialias;
  long long image_bytes;
  float a[3], b[3];
};

struct AsFloat {
  float* out;
  __device__ void put(long long i, float value) const { out[i] = value; }
};

struct AsHalf {
  half_t* out;
  __device__ void put(long long i, float value) const { out[i] = half_of(value); }
};

struct AsInt8 {
  signed char* out;
  float scale;
  int zero;
  __device__ void put(long long i, float value) const {  // clamped as float first: the cast never overflows
    const float q = rintf(value / scale) + static_cast<float>(zero);
    out[i] = static_cast<signed char>(fminf(fmaxf(q, -128.0f), 127.0f));
  }
};

template <int C, class Sink>
__device__ void fill(const Plan& plan, Image image, const byte_t* src, const Sink& sink) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  if (x >= plan.dst_w) return;
  const int in_x = x - plan.box_left;
  const long long plane = static_cast<long long>(plan.dst_h) * plan.dst_w;
  ROLLED for (int i = blockIdx.z; i < plan.n; i += gridDim.z) {
    image.data = src + i * plan.image_bytes;
    ROLLED for (int y = blockIdx.y * blockDim.y + threadIdx.y; y < plan.dst_h; y += gridDim.y * blockDim.y) {
      const int in_y = y - plan.box_top;
      float value[C];
      if (in_y < 0 || in_y >= plan.box_h || in_x < 0 || in_x >= plan.box_w) {
        for (int c = 0; c < C; ++c) value[c] = static_cast<float>(plan.pad);
      } else if (plan.antialias) {
        filtered<C>(image, Taps(in_y, plan.box_h, image.h), Taps(in_x, plan.box_w, image.w), plan.reverse, value);
      } else {
        bilinear<C>(image, Pair(in_y, plan.box_h, image.h), Pair(in_x, plan.box_w, image.w), plan.reverse, value);
      }
      const long long at = static_cast<long long>(i) * C * plane + static_cast<long long>(y) * plan.dst_w + x;
      for (int c = 0; c < C; ++c) sink.put(at + c * plane, value[c] * plan.a[c] + plan.b[c]);
    }
  }
}

}  // namespace

#define PREPROCESS_ARGUMENTS                                                                                       \
  int n, int src_h, int src_w, long long row_bytes, long long image_bytes, int pixel_bytes, int channels,          \
      int reverse, int dst_h, int dst_w, int box_top, int box_left, int box_h, int box_w, int pad, int antialias,  \
      float a0, float a1, float a2, float b0, float b1, float b2

#define PREPROCESS_BODY(sink)                                                                                      \
  const Plan plan = {n,     reverse, dst_h,     dst_w,       box_top,      box_left,    box_h,                     \
                     box_w, pad,     antialias, image_bytes, {a0, a1, a2}, {b0, b1, b2}};                          \
  const Image image = {src, src_h, src_w, row_bytes, pixel_bytes};                                                 \
  if (channels == 1) {                                                                                             \
    fill<1>(plan, image, src, sink);                                                                               \
  } else {                                                                                                         \
    fill<3>(plan, image, src, sink);                                                                               \
  }

extern "C" __global__ void preprocess_f32(const byte_t* src, float* dst, PREPROCESS_ARGUMENTS) {
  PREPROCESS_BODY(AsFloat{dst})
}

extern "C" __global__ void preprocess_f16(const byte_t* src, half_t* dst, PREPROCESS_ARGUMENTS) {
  PREPROCESS_BODY(AsHalf{dst})
}

extern "C" __global__ void preprocess_i8(const byte_t* src, signed char* dst, PREPROCESS_ARGUMENTS, float scale,
                                         int zero) {
  const AsInt8 sink = {dst, scale, zero};
  PREPROCESS_BODY(sink)
}
