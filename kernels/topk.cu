// topk_{f32,f16}: the k largest of each row of logits, largest first, with their indices.
//
// Launch: block 128 (any power of two up to 256), grid min(rows, 65535). One block takes one row at a time.
//
//   logits   row r at r*row_elems, in elements
//   values   [rows, k] float32; a NaN stays one
//   indices  [rows, k] int32
//   k        1..classes; places beyond the number of classes get index -1 and minus infinity
//
// Order: larger first, the lower index first among equals (so +0 and -0 are equal), every NaN before every number, as
// in torch.topk, except that torch leaves the order of ties open.
//
// Each round finds the largest entry below the one found last, so a row is read k times: meant for the few best of
// some thousand classes, which stay in cache, not for sorting.
#include "edge.cuh"

namespace {

enum { widest_block = 256 };

// One number that orders entries: the logit in its upper half, the index, turned round, in its lower. Never 0.
__device__ wide_t rank_of(float value, int index) {
  word_t bits = value == 0.0f ? 0u : bits_of(value);
  bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  if (value != value) bits = 0xfffffffeu;  // above infinity, and below what no entry has: the first round's bound
  return static_cast<wide_t>(bits) << 32 | ~static_cast<word_t>(index);
}

template <class Logit>
__device__ void topk(const Logit* logits, float* values, int* indices, int rows, int classes, int k,
                     long long row_elems) {
  __shared__ wide_t best[widest_block];
  const int self = threadIdx.x;
  for (int r = blockIdx.x; r < rows; r += gridDim.x) {
    const Logit* row = logits + r * row_elems;
    wide_t last = ~0ull;
    for (int place = 0; place < k; ++place) {
      wide_t mine = 0;
      for (int c = self; c < classes; c += blockDim.x) {
        const wide_t rank = rank_of(float_of(row[c]), c);
        if (rank < last && rank > mine) mine = rank;
      }
      best[self] = mine;
      __syncthreads();
      for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (self < half && best[self + half] > best[self]) best[self] = best[self + half];
        __syncthreads();
      }
      last = best[0];
      __syncthreads();  // everyone has read best[0] before anyone writes the next round
      if (self == 0) {
        const long long at = static_cast<long long>(r) * k + place;
        const int index = static_cast<int>(~static_cast<word_t>(last));
        indices[at] = last == 0 ? -1 : index;
        values[at] = last == 0 ? float_from(0xff800000u) : float_of(row[index]);
      }
    }
  }
}

}  // namespace

extern "C" __global__ void topk_f32(const float* logits, float* values, int* indices, int rows, int classes, int k,
                                    long long row_elems) {
  topk(logits, values, indices, rows, classes, k, row_elems);
}

extern "C" __global__ void topk_f16(const half_t* logits, float* values, int* indices, int rows, int classes, int k,
                                    long long row_elems) {
  topk(logits, values, indices, rows, classes, k, row_elems);
}
