// Rows, their distances, and plain steps of the greedy k-centre, every row against every pick.
#pragma once

#include "common.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace mm3dad {
namespace k_center {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kSingle = std::numeric_limits<float>::epsilon();
// Distances are compared unsquared in the triangle inequality; this covers the rounding of both sides.
constexpr double kSlack = 1e-9;
constexpr size_t kParallel = 24576;  // members from which a step is shared among threads: below, waiting for them costs more
constexpr int kLanes = 16;           // float32 numbers worked on side by side
constexpr int kSums = 8;             // partial sums of a float64 distance: their order is fixed, so that every processor rounds alike

#define MM3DAD_INLINE inline __attribute__((always_inline))

// Sums in lanes that are folded in halves: a compiler's own reduction adds them one after the other, which costs more than the rest.
MM3DAD_INLINE float squared_single(const float* a, const float* b, int64_t width) {
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes)
#pragma omp simd simdlen(kLanes)
    for (int k = 0; k < kLanes; ++k) sums[k] += (a[i + k] - b[i + k]) * (a[i + k] - b[i + k]);
  for (int k = 0; i < width; ++i, ++k) sums[k] += (a[i] - b[i]) * (a[i] - b[i]);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) sums[k] += sums[k + half];
  return sums[0];
}

MM3DAD_INLINE double squared_double(const float* a, const float* b, int64_t width) {
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= width; i += kSums)
    for (int k = 0; k < kSums; ++k) {
      const double d = static_cast<double>(a[i + k]) - static_cast<double>(b[i + k]);
      sums[k] += d * d;
    }
  for (int k = 0; i < width; ++i, ++k) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sums[k] += d * d;
  }
  for (int k = 0; k < kSums / 2; ++k) sums[k] += sums[k + kSums / 2];
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

struct Rows {
  const float* data;
  int64_t count, width;
  double shrink;  // lower bound of the true squared distance, given the float32 one
  double least;   // what float32 may lose to underflow

  Rows(const float* data_, int64_t count_, int64_t width_)
      : data(data_),
        count(count_),
        width(width_),
        shrink(1.0 - (width_ + 4) * kSingle),
        least(2.0 * width_ * std::numeric_limits<float>::min()) {}

  const float* row(int64_t i) const { return data + i * width; }

  void prefetch(int64_t i) const {
#if defined(__GNUC__)
    const float* at = row(i);
    for (int64_t k = 0; k < width && k < 256; k += 16) __builtin_prefetch(at + k);
#endif
  }

  MM3DAD_INLINE bool rules_out(float quick, double limit) const { return std::isfinite(quick) && quick * shrink - least >= limit; }

  // The squared distance where it is below `limit`, else anything that is not.
  MM3DAD_INLINE double below(int64_t i, const float* center, double limit) const {
    if (rules_out(squared_single(row(i), center, width), limit)) return kInfinity;
    return squared_double(row(i), center, width);
  }
};

// Lowest row among those of the largest distance.
inline bool ahead(double d, int64_t i, double best, int64_t best_index) { return d > best || (d == best && i < best_index); }

struct Best {
  double squared = -kInfinity;
  int64_t index = std::numeric_limits<int64_t>::max();

  void offer(double d, int64_t i) {
    if (ahead(d, i, squared, index)) squared = d, index = i;
  }
};

// Centred rows rounded to 16 bits: half of what a plain step reads, which is what it takes its time for. Sums of squares fit in 32 bits
// exactly, and how far rounding moved a row is known, so that what is ruled out by them is ruled out for certain.
struct Rough {
  static constexpr double kMost = 16383;  // of a coordinate and of a row's length: differences fit in 16 bits, their squares in 32
  int64_t width;
  double unit = 0, error = 0;   // of the coordinates; of both ends of a distance
  std::vector<int16_t> data;    // (N, width)
  std::vector<int32_t> limits;  // sums from which a row keeps its distance

  Rough(const Rows& rows, const double* distance) : width(rows.width), data(rows.count * rows.width), limits(rows.count) {
    std::vector<double> middle(width, 0.0);
    for (int64_t i = 0; i < rows.count; ++i)
      for (int64_t k = 0; k < width; ++k) middle[k] += static_cast<double>(rows.row(i)[k]) / rows.count;
    double longest = 0;
    for (int64_t i = 0; i < rows.count; ++i) longest = std::max(longest, squared_from(rows.row(i), middle.data()));
    unit = std::sqrt(longest) * (1 + kSlack) / kMost;
    if (!usable()) return;
    for (int64_t i = 0; i < rows.count; ++i) error = std::max(error, round_row(rows.row(i), middle.data(), data.data() + i * width));
    // Taking the middle from a row rounds, too.
    error = 2 * (std::sqrt(error) * (1 + kSlack) + std::sqrt(longest) * std::numeric_limits<double>::epsilon());
    for (int64_t i = 0; i < rows.count; ++i) set_limit(i, distance[i]);
  }

  // Rows that are all the same have no unit, nor have rows that are not finite.
  bool usable() const { return unit > 0 && std::isfinite(unit); }

  void set_limit(int64_t i, double squared) {
    const double length = (std::sqrt(std::max(squared, 0.0)) * (1 + kSlack) + error) / unit;
    limits[i] = static_cast<int32_t>(std::min(std::ceil(length * length * (1 + kSlack)), 2147483647.0));
  }

  MM3DAD_INLINE bool rules_out(int64_t i, int64_t center) const {
    const int16_t *a = data.data() + i * width, *b = data.data() + center * width;
    int32_t sum = 0;
    for (int64_t k = 0; k < width; ++k) {
      const int16_t d = static_cast<int16_t>(a[k] - b[k]);
      sum += static_cast<int32_t>(d) * d;
    }
    return sum >= limits[i];
  }

 private:
  double squared_from(const float* row, const double* middle) const {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < width; ++k) sum += (row[k] - middle[k]) * (row[k] - middle[k]);
    return sum;
  }

  // Round a row; returns the square of how far that moved it.
  double round_row(const float* row, const double* middle, int16_t* to) const {
    double moved = 0;
#pragma omp simd reduction(+ : moved)
    for (int64_t k = 0; k < width; ++k) {
      const double value = (row[k] - middle[k]) / unit;
      const double whole = std::nearbyint(value);
      to[k] = static_cast<int16_t>(whole);
      moved += (value - whole) * (value - whole) * unit * unit;
    }
    return moved;
  }
};

MM3DAD_CLONES Best plain_block(const Rows& rows, int64_t first, int64_t last, int64_t center, double* distance, int32_t* owner,
                               int32_t label, Rough* rough) {
  Best best;
  const float* z = rows.row(center);
  for (int64_t i = first; i < last; ++i) {
    if (i == center) {
      distance[i] = -kInfinity;
      owner[i] = label;
      if (rough) rough->set_limit(i, distance[i]);
    } else if (!rough || !rough->rules_out(i, center)) {
      const double d = rows.below(i, z, distance[i]);
      if (d < distance[i]) {
        distance[i] = d;
        owner[i] = label;
        if (rough) rough->set_limit(i, d);
      }
    }
    best.offer(distance[i], i);
  }
  return best;
}

// One step of the plain algorithm: bring all distances up to date with `center`, return the next pick.
inline int64_t plain_step(const Rows& rows, int64_t center, double* distance, int32_t* owner, int32_t label, int threads, Rough* rough) {
  Best best;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int t = 0; t < threads; ++t) {
    const int64_t first = rows.count * t / threads, last = rows.count * (t + 1) / threads;
    const Best mine = plain_block(rows, first, last, center, distance, owner, label, rough);
#pragma omp critical
    best.offer(mine.squared, mine.index);
  }
  return best.index;
}

}  // namespace k_center
}  // namespace mm3dad
