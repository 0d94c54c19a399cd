// A linear layer of spikes, T steps at once: what it computes and why is in spikes.py.

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t PARTS = 3, ROWS = 64, COLUMNS = 64;

inline uint32_t nearest(float value) {  // bits of the nearest bfloat16, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

inline float widened(uint32_t bits) {
  bits <<= 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Weights [columns, K] to PARTS blocks [K / 2, COLUMNS, 2], the order in which matrix units read them; the part of the
// smallest numbers first, so that they are added up first.
void split(const float* weight, int64_t columns, int64_t K, at::BFloat16* packed) {
  auto* __restrict out = reinterpret_cast<uint32_t*>(packed);
  alignas(64) float tile[16][COLUMNS] = {};
  for (int64_t k = 0; k < K; k += 16) {
    const int64_t some = std::min<int64_t>(16, K - k);
    for (int64_t n = 0; n < columns; ++n)
      for (int64_t i = 0; i < some; ++i) tile[i][n] = weight[n * K + k + i];
    for (int64_t i = 0; i < some; i += 2)
      for (int64_t n = 0; n < COLUMNS; ++n) {
        float even = tile[i][n], odd = tile[i + 1][n];
        for (int64_t part = PARTS - 1; part >= 0; --part) {
          const uint32_t low = nearest(even), high = nearest(odd);
          out[(part * (K / 2) + (k + i) / 2) * COLUMNS + n] = low | (high << 16);
          even -= widened(low);
          odd -= widened(high);
        }
      }
  }
}

// sums [rows, COLUMNS] times share plus bias. Row r of a step goes to row (r / inner) apart + r % inner of `means`.
// Whole cache lines go past the caches: a layer's output is larger than they are.
void write(const float* __restrict sums, const float* bias, float share, float* means, int64_t first, int64_t rows,
           int64_t inner, int64_t apart, int64_t columns, int64_t N, bool whole) {
  for (int64_t r = first; r < first + rows; ++r, sums += COLUMNS) {
    float* __restrict to = means + (r / inner * apart + r % inner) * N;
    if (whole)
      for (int64_t j = 0; j < COLUMNS; j += 16) {
        const __m512 value = _mm512_mul_ps(_mm512_load_ps(sums + j), _mm512_set1_ps(share));
        _mm512_stream_ps(to + j, _mm512_add_ps(value, bias ? _mm512_loadu_ps(bias + j) : _mm512_setzero_ps()));
      }
    else
      for (int64_t j = 0; j < columns; ++j) to[j] = sums[j] * share + (bias ? bias[j] : 0.0f);
  }
}

}  // namespace

// spikes [T, outer x inner, K]; weight [N, K]; bias [N] or null; packed: room for PARTS x K x N, N rounded up to COLUMNS.
// means [outer, T, inner, N]: of steps 1..t where `rate`, else sums. `group`: blocks of COLUMNS whose weights fit in the
// cache.
extern "C" void linear_of_spikes(const at::BFloat16* spikes, const float* weight, const float* bias,
                                 at::BFloat16* packed, float* means, int64_t T, int64_t outer, int64_t inner, int64_t K,
                                 int64_t N, int64_t rate, int64_t group) {
  const int64_t M = outer * inner, blocks = (N + COLUMNS - 1) / COLUMNS, tiles = (M + ROWS - 1) / ROWS, size = K * COLUMNS;
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      split(weight + i * size, std::min(COLUMNS, N - i * COLUMNS), K, packed + i * PARTS * size);
  });
  const bool aligned = N % 16 == 0 && reinterpret_cast<uintptr_t>(means) % 64 == 0;
  const int64_t groups = (blocks + group - 1) / group;
  at::parallel_for(0, groups * tiles, 1, [&](int64_t begin, int64_t end) {
    alignas(64) float sums[ROWS * COLUMNS];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t m = i % tiles * ROWS, rows = std::min(ROWS, M - m), first = i / tiles * group;
      for (int64_t block = first; block < std::min(first + group, blocks); ++block) {
        const int64_t n = block * COLUMNS, columns = std::min(COLUMNS, N - n);
        std::fill_n(sums, ROWS * COLUMNS, 0.0f);
        for (int64_t t = 0; t < T; ++t) {
          for (int64_t part = 0; part < PARTS; ++part)
            at::native::cpublas::brgemm(rows, COLUMNS, K, K, COLUMNS, COLUMNS, true, spikes + (t * M + m) * K,
                                        packed + (block * PARTS + part) * size, sums);
          write(sums, bias ? bias + n : nullptr, rate ? 1.0f / static_cast<float>(t + 1) : 1.0f,
                means + t * inner * N + n, m, rows, inner, T * inner, columns, N, aligned && columns == COLUMNS);
        }
      }
    }
    at::native::cpublas::brgemm_release();
    _mm_sfence();
  });
}
