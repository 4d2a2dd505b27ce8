// Short forms of rows whose distances bound those of the rows from below.
#pragma once

#include "k_center_plain.h"

namespace mm3dad {
namespace k_center {

constexpr int kHead = 32;           // coordinates of a head, the last of which is the length of what the others leave
constexpr int64_t kSampled = 1024;  // rows that tell whether skipping pays
constexpr int kTurns = 4;           // of the iteration that finds the directions of the heads

// Heads of the rows: their leading coordinates in a rotated frame, and the length of the rest. Two heads are at most as far apart as
// their rows, but for `slack`, what rounding may have added; where few directions hold most of the spread they settle most comparisons.
struct Heads {
  std::vector<float> data;  // (N, kHead)
  double slack = 0;

  const float* row(int64_t i) const { return data.data() + i * kHead; }

  // Float32 squared head distances at or above this belong to true distances of at least `distance`; NaN: none is known to.
  float limit(double distance) const {
    const double reach = distance * (1 + kSlack) + slack;
    const double value = reach * reach * (1 + 4 * kHead * kSingle);
    if (!(value < std::numeric_limits<float>::max())) return std::numeric_limits<float>::quiet_NaN();
    return std::max(static_cast<float>(value), std::numeric_limits<float>::min());
  }

  // Largest distance that the true one is known to reach, given the float32 squared head distance.
  double reached(float squared) const {
    if (!std::isfinite(squared)) return 0;
    const double sure = static_cast<double>(squared) * (1 - 4 * kHead * kSingle) - 2.0 * kHead * std::numeric_limits<float>::min();
    return (std::sqrt(std::max(sure, 0.0)) - slack) * (1 - kSlack);
  }
};

// Heads of some rows; returns the largest length of a centred row. `across` holds the directions as rows, `along` as columns.
MM3DAD_CLONES double project(const Rows& rows, int64_t first, int64_t last, const float* middle, const float* across, const float* along,
                             float* heads) {
  double longest = 0;
  std::vector<float> rest(rows.width);
  for (int64_t i = first; i < last; ++i) {
    const float* from = rows.row(i);
    float sum[kHead] = {};
    double length = 0, left = 0;
    for (int64_t k = 0; k < rows.width; ++k) {
      rest[k] = from[k] - middle[k];
      for (int h = 0; h < kHead; ++h) sum[h] += rest[k] * along[k * kHead + h];
    }
#pragma omp simd reduction(+ : length)
    for (int64_t k = 0; k < rows.width; ++k) length += static_cast<double>(rest[k]) * rest[k];
    for (int h = 0; h + 1 < kHead; ++h)
      for (int64_t k = 0; k < rows.width; ++k) rest[k] -= sum[h] * across[h * rows.width + k];
#pragma omp simd reduction(+ : left)
    for (int64_t k = 0; k < rows.width; ++k) left += static_cast<double>(rest[k]) * rest[k];
    std::copy_n(sum, kHead - 1, heads + i * kHead);
    heads[i * kHead + kHead - 1] = static_cast<float>(std::sqrt(left));
    longest = std::max(longest, length);
  }
  return std::sqrt(longest);
}

// One turn of subspace iteration: directions times the sample's transposed, times the sample.
MM3DAD_CLONES void times_covariance(const float* sample, int64_t taken, int64_t width, float* directions) {
  constexpr int kUsed = kHead - 1;
  std::vector<float> along(width * kHead, 0.0f), sum(kUsed * width, 0.0f);
  for (int h = 0; h < kUsed; ++h)
    for (int64_t k = 0; k < width; ++k) along[k * kHead + h] = directions[h * width + k];
  for (int64_t i = 0; i < taken; ++i) {
    const float* from = sample + i * width;
    float onto[kHead] = {};
    for (int64_t k = 0; k < width; ++k)
      for (int h = 0; h < kHead; ++h) onto[h] += from[k] * along[k * kHead + h];
    for (int h = 0; h < kUsed; ++h)
      for (int64_t k = 0; k < width; ++k) sum[h * width + k] += onto[h] * from[k];
  }
  std::copy(sum.begin(), sum.end(), directions);
}

// A few directions that hold most of the spread of some rows, and the middle of these. They decide how much work is saved, never what is
// picked. Small products in plain loops: a matrix library's threads would wait for each other longer than all of this takes.
struct Frame {
  std::vector<float> middle, directions;  // (width), (kHead - 1, width)
  double skew = 0;                        // how far the directions are from orthonormal

  explicit Frame(const Rows& rows) : middle(rows.width), directions((kHead - 1) * rows.width) {
    const int64_t step = std::max<int64_t>(1, rows.count / kSampled), width = rows.width;
    std::vector<double> mean(width, 0.0);
    int64_t taken = 0;
    for (int64_t i = 0; i < rows.count; i += step, ++taken)
      for (int64_t k = 0; k < width; ++k) mean[k] += rows.row(i)[k];
    for (int64_t k = 0; k < width; ++k) middle[k] = static_cast<float>(mean[k] / taken);
    std::vector<float> sample(taken * width);
    for (int64_t i = 0; i < taken; ++i)
      for (int64_t k = 0; k < width; ++k) sample[i * width + k] = rows.row(i * step)[k] - middle[k];
    uint32_t state = 1;  // any start will do that is the same every time
    for (float& value : directions) {
      state = state * 1664525u + 1013904223u;
      value = static_cast<float>(state >> 8) / (1 << 24) - 0.5f;
    }
    orthonormalise(width);
    for (int turn = 0; turn < kTurns; ++turn) {
      times_covariance(sample.data(), taken, width, directions.data());
      orthonormalise(width);
    }
    for (int g = 0; g + 1 < kHead; ++g)
      for (int h = 0; h + 1 < kHead; ++h) {
        const double product = dot(&directions[g * width], &directions[h * width], width) - (g == h && used > g ? 1.0 : 0.0);
        skew += product * product;
      }
    skew = std::sqrt(skew);
  }

 private:
  int used = 0;  // directions that are not zero

  static double dot(const float* a, const float* b, int64_t width) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < width; ++k) sum += static_cast<double>(a[k]) * b[k];
    return sum;
  }

  // Gram and Schmidt, twice each, which is enough for float32; a direction of which nothing is left becomes zero.
  void orthonormalise(int64_t width) {
    used = 0;
    for (int h = 0; h + 1 < kHead; ++h) {
      float* own = &directions[h * width];
      const double before = std::sqrt(dot(own, own, width));
      for (int again = 0; again < 2; ++again)
        for (int g = 0; g < used; ++g) {
          const float* other = &directions[g * width];
          const float along = static_cast<float>(dot(own, other, width));
          for (int64_t k = 0; k < width; ++k) own[k] -= along * other[k];
        }
      const double length = std::sqrt(dot(own, own, width));
      if (!(length > 1e-4 * before) || !std::isfinite(length)) {
        std::fill_n(own, width, 0.0f);
        continue;
      }
      for (int64_t k = 0; k < width; ++k) directions[used * width + k] = static_cast<float>(own[k] / length);
      if (used++ < h) std::fill_n(own, width, 0.0f);
    }
  }
};

inline Heads make_heads(const Rows& rows, const Frame& frame, int threads) {
  Heads heads;
  heads.data.resize(rows.count * kHead);
  std::vector<float> along(rows.width * kHead, 0.0f);
  for (int h = 0; h + 1 < kHead; ++h)
    for (int64_t k = 0; k < rows.width; ++k) along[k * kHead + h] = frame.directions[h * rows.width + k];
  double longest = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(max : longest) if (rows.count > static_cast<int64_t>(kParallel))
  for (int t = 0; t < threads; ++t)
    longest = std::max(longest, project(rows, rows.count * t / threads, rows.count * (t + 1) / threads, frame.middle.data(),
                                        frame.directions.data(), along.data(), heads.data.data()));
  // A float32 dot product is off by at most width * epsilon / 2 times both lengths; what it is off by is missing in the rest, too.
  const double dot = std::sqrt(static_cast<double>(kHead)) * (rows.width + 4) * kSingle / 2;
  const double rest = kHead * (1 + std::sqrt(static_cast<double>(kHead))) * kSingle;
  heads.slack = 2 * longest * (2 * dot + rest + 2 * frame.skew);
  return heads;
}

}  // namespace k_center
}  // namespace mm3dad
