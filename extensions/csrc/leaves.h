// A cloud sorted along a space-filling curve and cut into short runs ("leaves") with their boxes, 16 leaves to a group.
//
// The distance from a point to a box is rounded as the distances to the points inside are (every step of both is monotone, and nothing is
// fused), so that a box that is not nearer than some bound holds no point that is: skipping needs no slack and changes no bit.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <vector>

namespace mm3dad {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kLanes = 8;                        // doubles worked on side by side
constexpr int kLeaf = 16;                        // points of a leaf
constexpr int kGroup = 16;                       // leaves of a group
constexpr int32_t kNone = INT32_MAX;             // index of a place without a point
static_assert(kLeaf % kLanes == 0 && kGroup % kLanes == 0);

struct Boxes {
  std::array<std::vector<double>, 3> low, high;

  void assign(int64_t count) {
    for (int axis = 0; axis < 3; ++axis) {
      low[axis].assign(count, kInfinity);
      high[axis].assign(count, -kInfinity);
    }
  }
  void include(int64_t box, int axis, double from, double to) {
    low[axis][box] = std::min(low[axis][box], from);
    high[axis][box] = std::max(high[axis][box], to);
  }
};

// How far two intervals lie apart, 0 where they meet.
inline __attribute__((always_inline)) double gap(double low, double high, double from, double to) {
  const double before = low - to, after = from - high;
  const double most = before > after ? before : after;
  return most > 0 ? most : 0;
}

// Squared distance from a box (low, high) to each of `count` boxes (a multiple of kLanes); 0 where they meet, infinite where one is empty.
inline __attribute__((always_inline)) void distance_to_boxes(const Boxes& boxes, int64_t first, int64_t count, const double* low,
                                                             const double* high, double* result) {
  const double *lx = &boxes.low[0][first], *ly = &boxes.low[1][first], *lz = &boxes.low[2][first];
  const double *hx = &boxes.high[0][first], *hy = &boxes.high[1][first], *hz = &boxes.high[2][first];
  const double ax = low[0], ay = low[1], az = low[2], bx = high[0], by = high[1], bz = high[2];
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const double x = gap(lx[i], hx[i], ax, bx), y = gap(ly[i], hy[i], ay, by), z = gap(lz[i], hz[i], az, bz);
    result[i] = x * x + y * y + z * z;
  }
}

// The same from a point.
inline __attribute__((always_inline)) void distance_to_boxes(const Boxes& boxes, int64_t first, int64_t count, const double* point,
                                                             double* result) {
  distance_to_boxes(boxes, first, count, point, point, result);
}

constexpr int kSideBits = 11, kRowBits = 31;  // of a cell's place on one axis, and of a row number

inline uint64_t spread(uint64_t bits) {  // kSideBits, two zeros between each
  bits = (bits | bits << 16) & 0x0000FF0000FFull;
  bits = (bits | bits << 8) & 0x00F00F00F00Full;
  bits = (bits | bits << 4) & 0x0C30C30C30C3ull;
  return (bits | bits << 2) & 0x249249249249ull;
}

// Row numbers ordered by the interleaved bits of their cells in a cube of 2^11 cells a side. Fewer than 2^31 rows.
inline std::vector<uint64_t> sort_along_curve(const double* points, int64_t count) {
  double low[3] = {kInfinity, kInfinity, kInfinity}, high[3] = {-kInfinity, -kInfinity, -kInfinity};
  for (int64_t i = 0; i < count; ++i)
    for (int axis = 0; axis < 3; ++axis) {
      low[axis] = std::min(low[axis], points[3 * i + axis]);
      high[axis] = std::max(high[axis], points[3 * i + axis]);
    }
  constexpr double most = (1 << kSideBits) - 1;
  constexpr uint64_t row = (uint64_t{1} << kRowBits) - 1;
  const double extent = std::max({high[0] - low[0], high[1] - low[1], high[2] - low[2]});
  const double scale = extent > 0 && extent < kInfinity ? most / extent : 0.0;
  // The cell above, the row below: one number to move about.
  std::vector<uint64_t> keys(count), next(count);
  for (int64_t i = 0; i < count; ++i) {
    uint64_t key = 0;
    for (int axis = 0; axis < 3; ++axis) {
      const double cell = scale > 0 ? (points[3 * i + axis] - low[axis]) * scale : 0.0;
      key |= spread(static_cast<uint64_t>(std::min(cell, most))) << axis;
    }
    keys[i] = key << kRowBits | static_cast<uint64_t>(i);
  }
  constexpr int digits = 1 << kSideBits;
  for (int shift = kRowBits; shift < kRowBits + 3 * kSideBits; shift += kSideBits) {
    int64_t start[digits + 1] = {0};
    for (uint64_t key : keys) ++start[(key >> shift & (digits - 1)) + 1];
    for (int digit = 0; digit < digits; ++digit) start[digit + 1] += start[digit];
    for (uint64_t key : keys) next[start[key >> shift & (digits - 1)]++] = key;
    keys.swap(next);
  }
  for (uint64_t& key : keys) key &= row;
  return keys;
}

struct Leaves {
  int64_t leaf_count = 0, group_count = 0;  // group_count is padded to kLanes, leaf_count to whole groups
  std::array<std::vector<double>, 3> place;  // by leaf; infinite where a leaf is not full
  std::vector<int32_t> index;                // into the cloud, kNone where a leaf is not full
  Boxes leaf, group;

  Leaves(const double* points, int64_t count) {
    const std::vector<uint64_t> order = sort_along_curve(points, count);
    group_count = (count + kLeaf * kGroup - 1) / (kLeaf * kGroup);
    group_count = (group_count + kLanes - 1) / kLanes * kLanes;
    leaf_count = group_count * kGroup;
    index.assign(leaf_count * kLeaf, kNone);
    for (int64_t i = 0; i < count; ++i) index[i] = static_cast<int32_t>(order[i]);
    leaf.assign(leaf_count);
    group.assign(group_count);
    for (int axis = 0; axis < 3; ++axis) {
      place[axis].assign(leaf_count * kLeaf, kInfinity);
      for (int64_t i = 0; i < count; ++i) {
        const double value = points[3 * static_cast<int64_t>(index[i]) + axis];
        place[axis][i] = value;
        leaf.include(i / kLeaf, axis, value, value);
      }
      for (int64_t i = 0; i < leaf_count; ++i) group.include(i / kGroup, axis, leaf.low[axis][i], leaf.high[axis][i]);
    }
  }
};

// Squared distances of the leaf of points that begins at `first`.
inline __attribute__((always_inline)) void distance_to_points(const Leaves& cloud, int64_t first, const double* query, double* squared) {
  const double *x = &cloud.place[0][first], *y = &cloud.place[1][first], *z = &cloud.place[2][first];
#pragma omp simd
  for (int i = 0; i < kLeaf; ++i) {
    const double u = x[i] - query[0], v = y[i] - query[1], w = z[i] - query[2];
    squared[i] = u * u + v * v + w * w;
  }
}

}  // namespace mm3dad
