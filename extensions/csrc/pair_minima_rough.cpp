// flags: -ffinite-math-only -fno-signed-zeros
// Least squared distances of pairs of samples, in both directions, by products in bfloat16 on a processor's matrix units (Intel AMX).
//
// The units multiply ten times as fast as the vector units, but roughly: the product only says who may be nearest within its stated error,
// and each of those is measured from the difference of the rows in float32, so that the distances are those of a float32 product.
// A product lives as long as it is in the second cache: 32 rows of it at a time are multiplied and read off. By then the minimum of a row
// is known, that of a column only so far; what may lie at it is written down, and dropped at the end where the minimum fell further.
// One thread takes a pair as a whole, so that nothing is shared.

#include "common.h"
#include "pair_scan.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <vector>

namespace mm3dad {
namespace pair_minima_rough_ {

using namespace pair_scan;

#define MM3DAD_UNITS __attribute__((target("arch=x86-64-v4,amx-tile,amx-bf16")))

constexpr int64_t TILE = 16, PANEL = 2 * TILE, DEPTH = 32;  // rows of a tile, rows of a block of two, channels of a tile

// Linux hands the units out on request, to a whole process (arch_prctl, ARCH_REQ_XCOMP_PERM of tile data).
bool ask_for_units() {
  static const bool given = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return given;
}

struct alignas(64) Palette {
  uint8_t id = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Eight full tiles while it lives; then what the thread had before: torch's own products keep their setting from call to call.
class Setting {
 public:
  MM3DAD_UNITS Setting() {
    _tile_storeconfig(&before_);
    Palette full;
    for (int i = 0; i < 8; ++i) full.bytes[i] = 64, full.rows[i] = TILE;
    asm volatile("" : : "r"(&full) : "memory");  // GCC 12 believes that only the first 8 bytes are read, and drops the other stores
    _tile_loadconfig(&full);
  }
  MM3DAD_UNITS ~Setting() {
    asm volatile("" : : "r"(&before_) : "memory");
    if (before_.id)
      _tile_loadconfig(&before_);
    else
      _tile_release();
  }

 private:
  Palette before_;
};

// Products of PANEL rows with all rows of the packed sample: (PANEL, width) sums in float32.
MM3DAD_UNITS void multiply(const uint16_t* rows, const uint32_t* packed, int64_t channels, int64_t width, float* sums) {
  const int64_t line = channels * sizeof(uint16_t), block = TILE * channels / 2;  // bytes of a row, words of TILE packed rows
  for (int64_t q = 0; q < width; q += PANEL) {
    const uint32_t *left = packed + q / TILE * block, *right = left + block;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t c = 0; c < channels; c += DEPTH) {
      _tile_loadd(4, rows + c, line);
      _tile_loadd(6, left + c / 2 * TILE, 64);
      _tile_loadd(7, right + c / 2 * TILE, 64);
      _tile_loadd(5, rows + TILE * channels + c, line);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums + q, width * sizeof(float));
    _tile_stored(1, sums + q + TILE, width * sizeof(float));
    _tile_stored(2, sums + TILE * width + q, width * sizeof(float));
    _tile_stored(3, sums + TILE * width + q + TILE, width * sizeof(float));
  }
}

struct Candidate {
  int32_t row, column;
  float value;  // of the product: -2ab
};

struct Sample {
  const uint16_t* rows;    // (padded, channels) -2a in bfloat16
  const uint32_t* packed;  // (padded / TILE, channels / 2, TILE) a in bfloat16, two channels in a word
  const float* features;   // (patches, width)
  const float* squares;    // (patches)
};

struct Work {
  std::vector<float> sums, best, limits, errors, row_limits;
  std::vector<int64_t> columns;
  std::vector<Candidate> candidates;
};

MM3DAD_UNITS int64_t reduce_pair(const Sample& one, const Sample& other, int64_t patches, int64_t padded, int64_t channels, int64_t width,
                                 float share, int64_t most, Work& work, float* forward, float* backward) {
  constexpr float far = std::numeric_limits<float>::max();
  constexpr float rounding = 4 * std::numeric_limits<float>::epsilon();
  const float longest = largest_norm(one.squares, patches), longest_of_theirs = largest_norm(other.squares, patches);
  for (int64_t q = 0; q < patches; ++q)
    work.errors[q] = 2 * (share * longest * std::sqrt(other.squares[q]) + rounding * (longest * longest + other.squares[q]));
  std::fill(work.best.begin(), work.best.end(), far);
  work.candidates.clear();
  for (int64_t first = 0; first < patches; first += PANEL) {
    const int64_t count = std::min(PANEL, patches - first);
    multiply(one.rows + first * channels, other.packed, channels, padded, work.sums.data());
    scan_rows(work.sums.data(), padded, count, patches, one.squares + first, other.squares, forward + first, work.best.data());
    for (int64_t q = 0; q < patches; ++q) work.limits[q] = work.best[q] + work.errors[q];
    for (int64_t k = 0; k < count; ++k) {
      const float* row = work.sums.data() + k * padded;
      const float square = one.squares[first + k];
      const float error = share * std::sqrt(square) * longest_of_theirs + rounding * (square + longest_of_theirs * longest_of_theirs);
      const float limit = work.row_limits[first + k] = forward[first + k] + 2 * error;
      const int64_t found =
          find_row(row, patches, other.features, 0, square, other.squares, limit, work.limits.data(), work.columns.data());
      if (static_cast<int64_t>(work.candidates.size()) + found > most) return -1;
      for (int64_t i = 0; i < found; ++i) {
        const int64_t q = work.columns[i];
        work.candidates.push_back({static_cast<int32_t>(first + k), static_cast<int32_t>(q), row[q]});
      }
    }
  }
  const auto end = std::remove_if(work.candidates.begin(), work.candidates.end(), [&](const Candidate& it) {
    return it.value + other.squares[it.column] > work.row_limits[it.row] && it.value + one.squares[it.row] > work.limits[it.column];
  });
  const int64_t left = end - work.candidates.begin();
  std::fill(forward, forward + patches, far);
  std::fill(backward, backward + patches, far);
  constexpr int64_t AHEAD = 4;
  for (int64_t i = 0; i < left; ++i) {
    if (i + AHEAD < left) fetch(other.features + work.candidates[i + AHEAD].column * width, width);
    const Candidate& it = work.candidates[i];
    const int64_t column = it.column;
    measure_row(one.features + it.row * width, other.features, width, &column, 1, forward[it.row], backward);
  }
  return left;
}

}  // namespace pair_minima_rough_

std::tuple<Tensor, Tensor, Tensor> pair_minima_rough(const Tensor& rows, const Tensor& packed, const Tensor& features,
                                                     const Tensor& squares, const Tensor& pairs, double slack, int64_t most,
                                                     int64_t threads) {
  using namespace pair_minima_rough_;
  check_tensor(rows, 3, ScalarType::BFloat16, "rows");
  check_tensor(packed, 4, ScalarType::Int, "packed");
  check_tensor(features, 3, ScalarType::Float, "features");
  check_tensor(squares, 2, ScalarType::Float, "squares");
  check_tensor(pairs, 2, ScalarType::Long, "pairs");
  const int64_t samples = features.size(0), patches = features.size(1), width = features.size(2);
  const int64_t padded = rows.size(1), channels = rows.size(2), count = pairs.size(0);
  STD_TORCH_CHECK(patches > 0 && rows.size(0) == samples && padded >= patches && padded % PANEL == 0 && channels % DEPTH == 0,
                  "rows must be (N, P', C') with P' and C' multiples of 32");
  STD_TORCH_CHECK(packed.size(0) == samples && packed.size(1) * TILE == padded && packed.size(2) * 2 == channels && packed.size(3) == TILE,
                  "packed must be (N, P' / 16, C' / 2, 16)");
  STD_TORCH_CHECK(squares.size(0) == samples && squares.size(1) == patches && pairs.size(1) == 2, "squares and pairs must fit features");
  Tensor forward = torch::stable::new_empty(features, {count, patches});
  Tensor backward = torch::stable::new_empty(features, {count, patches});
  Tensor measured = torch::stable::new_empty(pairs, {count});
  const int64_t* chosen = pairs.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < 2 * count; ++i) STD_TORCH_CHECK(chosen[i] >= 0 && chosen[i] < samples, "pairs must name samples");
  int64_t* found = measured.mutable_data_ptr<int64_t>();
  std::fill(found, found + count, -1);
  if (!ask_for_units()) return {forward, backward, measured};
  const auto sample = [&](int64_t i) {
    return Sample{static_cast<const uint16_t*>(rows.const_data_ptr()) + i * padded * channels,
                  reinterpret_cast<const uint32_t*>(packed.const_data_ptr<int32_t>()) + i * padded * channels / 2,
                  features.const_data_ptr<float>() + i * patches * width, squares.const_data_ptr<float>() + i * patches};
  };
  float *by_row = forward.mutable_data_ptr<float>(), *by_column = backward.mutable_data_ptr<float>();
  threads = std::max<int64_t>(1, std::min(threads, count));
#pragma omp parallel num_threads(threads)
  {
    const Setting setting;
    Work work;
    work.sums.resize(PANEL * padded);
    for (auto* values : {&work.best, &work.limits, &work.errors, &work.row_limits}) values->resize(patches);
    work.columns.resize(patches);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < count; ++i)
      found[i] = reduce_pair(sample(chosen[2 * i]), sample(chosen[2 * i + 1]), patches, padded, channels, width, static_cast<float>(slack),
                             most, work, by_row + i * patches, by_column + i * patches);
  }
  return {forward, backward, measured};
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) {
  m.def(
      "pair_minima_rough(Tensor rows, Tensor packed, Tensor features, Tensor squares, Tensor pairs, float slack, int most, int threads) "
      "-> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) { m.impl("pair_minima_rough", TORCH_BOX(&mm3dad::pair_minima_rough)); }

#endif
