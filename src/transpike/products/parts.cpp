// A linear layer on bfloat16 matrix units, as exact as in float32: what it computes and why is in parts.py.

#include <ATen/Parallel.h>
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace at::cpu {
bool init_amx();  // asks the system for the units; its header takes three times as long to compile as all of this
}

namespace {

// A tile is 16 lines of 64 bytes: 16 rows of 32 inputs or, of weights, 16 pairs of inputs by 16 columns. A block of sums
// is two tiles by two; two tiles of inputs and two of weights add to it at a time.
constexpr int64_t PARTS = 3, SIDE = 16, DEPTH = 32, TILE = SIDE * DEPTH, BLOCK = 2 * SIDE;
constexpr int64_t DEEP = 2048;     // inputs at a time, at most, so that the weights of a block stay in the cache
constexpr int64_t ROOM = 3 << 18;  // bytes for rows of inputs at a time, less than half of it

struct alignas(64) Tiles {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t lines[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

struct Layer {
  const float *weight, *bias;
  float* means;
  int64_t T, outer, inner, K, N;
  bool rate;

  int64_t rows() const { return outer * inner; }
  int64_t row(int64_t r, int64_t t) const { return (r / inner * T + t) * inner + r % inner; }
};

inline int64_t over(int64_t total, int64_t size) { return (total + size - 1) / size; }

inline __mmask16 leading(int64_t some) { return some >= SIDE ? 0xffff : some <= 0 ? 0 : (1 << some) - 1; }

inline __m512 widened(__m256bh part) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)part), 16));
}

// The leading numbers of 32 as sums of bfloat16 parts, the largest part first; zeros behind them.
template <int64_t OF>
inline void divide(const float* from, int64_t some, __m512i* parts) {
  __m512 low = _mm512_maskz_loadu_ps(leading(some), from);
  __m512 high = _mm512_maskz_loadu_ps(leading(some - SIDE), from + SIDE);
  for (int64_t part = 0; part < OF; ++part) {
    const __m256bh l = _mm512_cvtneps_pbh(low), h = _mm512_cvtneps_pbh(high);
    parts[part] = _mm512_inserti64x4(_mm512_castsi256_si512((__m256i)l), (__m256i)h, 1);
    low = _mm512_sub_ps(low, widened(l));
    high = _mm512_sub_ps(high, widened(h));
  }
}

template <int64_t OF>
inline void divide(const uint16_t* from, int64_t some, __m512i* parts) {  // is one part
  parts[0] = _mm512_maskz_loadu_epi16(leading(some) | uint32_t{leading(some - SIDE)} << SIDE, from);
}

inline void transpose(__m512i* lines) {  // 16 by 16
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (int side = 8; side; side /= 2) {
    const __mmask16 odd = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(side));
    const __m512i first = _mm512_mask_add_epi32(lane, odd, lane, _mm512_set1_epi32(16 - side));
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(side));
    for (int i = 0; i < 16; ++i)
      if (!(i & side)) {
        const __m512i above = lines[i], below = lines[i + side];
        lines[i] = _mm512_permutex2var_epi32(above, first, below);
        lines[i + side] = _mm512_permutex2var_epi32(above, second, below);
      }
  }
}

// Weights [columns, K] of a block as tiles: for every 32 inputs the parts, the smallest first, of two tiles.
void pack_weights(const float* weight, int64_t columns, int64_t K, uint16_t* out) {
  for (int64_t k = 0; k < K; k += DEPTH, out += 2 * PARTS * TILE)
    for (int64_t half = 0; half < 2; ++half) {
      __m512i pairs[PARTS][SIDE] = {};
      for (int64_t n = 0; n < std::min(SIDE, columns - half * SIDE); ++n) {
        __m512i parts[PARTS];
        divide<PARTS>(weight + (half * SIDE + n) * K + k, K - k, parts);
        for (int64_t part = 0; part < PARTS; ++part) pairs[part][n] = parts[part];
      }
      for (int64_t part = 0; part < PARTS; ++part) {
        transpose(pairs[part]);
        uint16_t* tile = out + (2 * (PARTS - 1 - part) + half) * TILE;
        for (int64_t i = 0; i < SIDE; ++i) _mm512_store_si512(tile + i * DEPTH, pairs[part][i]);
      }
    }
}

// Inputs k.. of step t of 32 rows as tiles: for every 32 inputs the parts, the largest first, of two tiles.
template <int64_t OF, typename Input>
void pack_inputs(const Layer& layer, const Input* input, int64_t m, int64_t t, int64_t k, int64_t some, uint16_t* out) {
  for (int64_t r = 0; r < BLOCK; ++r) {
    const bool there = m + r < layer.rows();
    const Input* from = there ? input + layer.row(m + r, t) * layer.K + k : input;
    uint16_t* line = out + r / SIDE * TILE + r % SIDE * DEPTH;
    for (int64_t i = 0; i < some; i += DEPTH, line += 2 * OF * TILE) {
      __m512i parts[OF];
      divide<OF>(from + i, there ? some - i : 0, parts);
      for (int64_t part = 0; part < OF; ++part) _mm512_store_si512(line + 2 * part * TILE, parts[part]);
    }
  }
}

inline void take_inputs(const uint16_t* inputs, int64_t part) {
  _tile_loadd(4, inputs + 2 * part * TILE, 64);
  _tile_loadd(5, inputs + (2 * part + 1) * TILE, 64);
}

inline void take_weights(const uint16_t* weights, int64_t part) {
  _tile_loadd(6, weights + 2 * (PARTS - 1 - part) * TILE, 64);
  _tile_loadd(7, weights + (2 * (PARTS - 1 - part) + 1) * TILE, 64);
}

inline void add_products() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(3, 5, 7);
}

// 32 inputs, small products first. Of nine products of parts the three left out are less than float32 rounds away.
template <int64_t OF>
inline void add(const uint16_t* inputs, const uint16_t* weights) {
  take_inputs(inputs, 0), take_weights(weights, 2), add_products();
  take_weights(weights, 1), add_products();
  if (OF == 1) {
    take_weights(weights, 0), add_products();
  } else {
    take_inputs(inputs, 1), add_products();
    take_weights(weights, 0), add_products();
    take_inputs(inputs, 2), add_products();
    take_inputs(inputs, 0), add_products();
  }
}

inline void clear_block() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

inline void store_block(float* sums) {
  _tile_stored(0, sums, 4 * BLOCK);
  _tile_stored(1, sums + SIDE, 4 * BLOCK);
  _tile_stored(2, sums + SIDE * BLOCK, 4 * BLOCK);
  _tile_stored(3, sums + SIDE * BLOCK + SIDE, 4 * BLOCK);
}

// A block of sums of step t to `means`, added to what is there of inputs before; after the last inputs times share plus
// bias. Whole cache lines then go past the caches: a layer's output is larger than they are.
void write(const Layer& layer, const float* sums, int64_t m, int64_t n, int64_t t, bool begun, bool done) {
  const __m512 share = _mm512_set1_ps(done && layer.rate ? 1.0f / static_cast<float>(t + 1) : 1.0f);
  const float* bias = done ? layer.bias : nullptr;
  const bool aligned = layer.N % 16 == 0 && reinterpret_cast<uintptr_t>(layer.means) % 64 == 0;
  for (int64_t r = m; r < std::min(m + BLOCK, layer.rows()); ++r) {
    float* to = layer.means + layer.row(r, t) * layer.N + n;
    for (int64_t j = 0; j < BLOCK; j += SIDE, sums += SIDE) {
      const __mmask16 mask = leading(layer.N - n - j);
      __m512 value = _mm512_load_ps(sums);
      if (begun) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, to + j));
      value = _mm512_mul_ps(value, share);
      if (bias) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, bias + n + j));
      if (done && aligned && mask == 0xffff)
        _mm512_stream_ps(to + j, value);
      else
        _mm512_mask_storeu_ps(to + j, mask, value);
    }
  }
}

template <int64_t OF, typename Input>
void compute(const Layer& layer, const Input* input, uint16_t* packed) {
  const int64_t blocks = over(layer.N, BLOCK), panel = over(layer.K, DEPTH) * 2 * PARTS * TILE;
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      pack_weights(layer.weight + i * BLOCK * layer.K, std::min(BLOCK, layer.N - i * BLOCK), layer.K, packed + i * panel);
  });
  const int64_t slice = over(over(layer.K, over(layer.K, DEEP)), DEPTH) * DEPTH;
  const int64_t step = slice / DEPTH * 2 * OF * TILE;  // of 32 rows
  const int64_t all = over(layer.rows(), BLOCK), fit = std::clamp<int64_t>(ROOM / (2 * layer.T * step), 1, all);
  const int64_t threads = at::get_num_threads(), rounds = over(over(all, fit), threads);
  const int64_t tall = over(all, rounds * threads), parts = over(all, tall);  // as much for every thread
  const int64_t shares = std::min(blocks, over(threads, parts));
  at::parallel_for(0, parts * shares, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<void, void (*)(void*)> room(std::aligned_alloc(64, 2 * tall * layer.T * step), &std::free);
    auto* inputs = static_cast<uint16_t*>(room.get());
    alignas(64) float sums[BLOCK * BLOCK];
    const Tiles tiles;
    _tile_loadconfig(&tiles);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t top = i / shares * tall, bottom = std::min(top + tall, all), share = i % shares;
      for (int64_t k = 0; k < layer.K; k += slice) {
        const int64_t some = std::min(layer.K - k, slice);
        for (int64_t m = top; m < bottom; ++m)
          for (int64_t t = 0; t < layer.T; ++t)
            pack_inputs<OF>(layer, input, m * BLOCK, t, k, some, inputs + ((m - top) * layer.T + t) * step);
        for (int64_t n = share * blocks / shares; n < (share + 1) * blocks / shares; ++n)
          for (int64_t m = top; m < bottom; ++m) {
            clear_block();
            for (int64_t t = 0; t < layer.T; ++t) {
              const uint16_t* from = inputs + ((m - top) * layer.T + t) * step;
              const uint16_t* weights = packed + n * panel + k / DEPTH * 2 * PARTS * TILE;
              for (int64_t d = 0; d < some; d += DEPTH, from += 2 * OF * TILE, weights += 2 * PARTS * TILE)
                add<OF>(from, weights);
              store_block(sums);
              write(layer, sums, m * BLOCK, n * BLOCK, t, k > 0, k + slice >= layer.K);
            }
          }
      }
    }
    _tile_release();
    _mm_sfence();
  });
}

}  // namespace

// input [outer, T, inner, K]: spikes in bfloat16 or, with `whole`, any numbers in float32; weight [N, K]; bias [N] or
// null; packed: room for PARTS x K x N bfloat16 numbers, K and N rounded up to BLOCK, aligned to 64 bytes.
// means [outer, T, inner, N]: of the layer's outputs in steps 1..t where `rate`, else their sums.
extern "C" void linear_in_parts(const void* input, const float* weight, const float* bias, uint16_t* packed,
                                float* means, int64_t T, int64_t outer, int64_t inner, int64_t K, int64_t N,
                                int64_t rate, int64_t whole) {
  at::cpu::init_amx();
  const Layer layer{weight, bias, means, T, outer, inner, K, N, rate != 0};
  if (whole)
    compute<PARTS>(layer, static_cast<const float*>(input), packed);
  else
    compute<1>(layer, static_cast<const uint16_t*>(input), packed);
}
