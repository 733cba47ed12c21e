// argmax_{f32,f16}: logits NCHW -> class map uint8.   palette: class map -> RGB or RGBA image.
//
// Launch: block (32, 8), grid (ceil(w / 32), ceil(h / 8), n), for all three. One thread makes one pixel.
//
//   logits       image i, class c, pixel (y, x) at i*image_elems + c*class_elems + y*w + x, in elements
//   map          image i, pixel (y, x) at i*map_image_bytes + y*map_row_bytes + x
//   classes      1..256
//   table        [256, 3] uint8; all 256 rows, so that no class can read beside it
//   rgb          image i, pixel (y, x) at i*rgb_image_bytes + y*rgb_row_bytes + x*pixel_bytes
//   pixel_bytes  3, or 4: the fourth byte becomes 255
//
// The winner is the lowest class among equals. A NaN wins over every number, and the first NaN over later ones, as in
// NumPy and torch: a broken network shows, and does not hide behind class 0.
#include "edge.cuh"

namespace {

template <class Logit>
__device__ void argmax(const Logit* logits, byte_t* map, int n, int classes, int h, int w, long long class_elems,
                       long long image_elems, long long map_row_bytes, long long map_image_bytes) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  if (x >= w) return;
  for (int i = blockIdx.z; i < n; i += gridDim.z) {
    for (int y = blockIdx.y * blockDim.y + threadIdx.y; y < h; y += gridDim.y * blockDim.y) {
      const Logit* pixel = logits + i * image_elems + static_cast<long long>(y) * w + x;
      float best = float_of(pixel[0]);
      int winner = 0;
      for (int c = 1; c < classes && best == best; ++c) {
        const float value = float_of(pixel[c * class_elems]);
        if (!(value <= best)) {  // above it, or a NaN, which ends the search
          best = value;
          winner = c;
        }
      }
      map[i * map_image_bytes + y * map_row_bytes + x] = static_cast<byte_t>(winner);
    }
  }
}

}  // namespace

extern "C" __global__ void argmax_f32(const float* logits, byte_t* map, int n, int classes, int h, int w,
                                      long long class_elems, long long image_elems, long long map_row_bytes,
                                      long long map_image_bytes) {
  argmax(logits, map, n, classes, h, w, class_elems, image_elems, map_row_bytes, map_image_bytes);
}

extern "C" __global__ void argmax_f16(const half_t* logits, byte_t* map, int n, int classes, int h, int w,
                                      long long class_elems, long long image_elems, long long map_row_bytes,
                                      long long map_image_bytes) {
  argmax(logits, map, n, classes, h, w, class_elems, image_elems, map_row_bytes, map_image_bytes);
}

extern "C" __global__ void palette(const byte_t* map, byte_t* rgb, const byte_t* table, int n, int h, int w,
                                   long long map_row_bytes, long long map_image_bytes, long long rgb_row_bytes,
                                   long long rgb_image_bytes, int pixel_bytes) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  if (x >= w) return;
  for (int i = blockIdx.z; i < n; i += gridDim.z) {
    for (int y = blockIdx.y * blockDim.y + threadIdx.y; y < h; y += gridDim.y * blockDim.y) {
      const byte_t* colour = table + 3 * map[i * map_image_bytes + y * map_row_bytes + x];
      byte_t* pixel = rgb + i * rgb_image_bytes + y * rgb_row_bytes + static_cast<long long>(x) * pixel_bytes;
      for (int c = 0; c < 3; ++c) pixel[c] = colour[c];
      if (pixel_bytes == 4) pixel[3] = 255;
    }
  }
}
