// flags: -ffp-contract=off
// The k nearest points of each query, exact in float64: ordered by distance, equal distances by the lowest index.
//
// Queries come along the curve, so that the one before tells how far to look: k points lie within its radius plus the step between the two.
// Everything within that limit is collected; buckets of squared distance, which a surface fills evenly, then sort it in linear time.

#include "common.h"
#include "leaves.h"

#include <cmath>

namespace mm3dad {
namespace nearest_neighbors_ {

constexpr double kTie = 1e-15;  // squared distances this close may have one and the same root

struct Found {
  double distance;
  int32_t index;
  bool operator<(const Found& other) const { return distance < other.distance || (distance == other.distance && index < other.index); }
};

// Candidates of one query: all points within `limit`, cut back to the k best whenever the room of a few k is used up.
struct Candidates {
  int64_t wanted, buckets, size = 0;
  double limit = kInfinity;
  std::vector<double> squared, distance;
  std::vector<int32_t> index, bucket, start;
  std::vector<Found> sorted;

  explicit Candidates(int64_t k)
      : wanted(k), buckets(k <= 128 ? 128 : 1024), squared(4 * k + 64), distance(squared.size()), index(squared.size()),
        bucket(squared.size()), start(buckets), sorted(squared.size()) {}

  void cut_back() {
    for (int64_t i = 0; i < size; ++i) sorted[i] = {std::sqrt(squared[i]), static_cast<int32_t>(i)};
    const auto less = [this](const Found& a, const Found& b) {
      return a.distance < b.distance || (a.distance == b.distance && index[a.index] < index[b.index]);
    };
    std::nth_element(sorted.begin(), sorted.begin() + wanted - 1, sorted.begin() + size, less);
    limit = squared[sorted[wanted - 1].index];
    limit += limit * kTie;
    std::sort(sorted.begin(), sorted.begin() + wanted, [](const Found& a, const Found& b) { return a.index < b.index; });
    for (int64_t i = 0; i < wanted; ++i) {
      squared[i] = squared[sorted[i].index];
      index[i] = index[sorted[i].index];
    }
    size = wanted;
  }
};

inline __attribute__((always_inline)) void collect_leaf(const Leaves& cloud, int64_t first, const double* query, Candidates& found) {
  if (found.size + kLeaf > static_cast<int64_t>(found.squared.size())) found.cut_back();
  double squared[kLeaf];
  distance_to_points(cloud, first, query, squared);
  double* to = found.squared.data();
  int32_t* rows = found.index.data();
  const int32_t* index = &cloud.index[first];
  int64_t size = found.size;
  for (int i = 0; i < kLeaf; ++i) {
    to[size] = squared[i];
    rows[size] = index[i];
    size += (squared[i] <= found.limit) & (index[i] != kNone);
  }
  found.size = size;
}

// Collects the points within the limit; returns the leaf nearest to the query.
inline __attribute__((always_inline)) int64_t collect(const Leaves& cloud, const double* query, double* bound, Candidates& found) {
  int64_t hint = 0;
  double nearest = kInfinity;
  distance_to_boxes(cloud.group, 0, cloud.group_count, query, bound);
  for (int64_t group = 0; group < cloud.group_count; ++group) {
    if (bound[group] > found.limit) continue;
    double near[kGroup];
    distance_to_boxes(cloud.leaf, group * kGroup, kGroup, query, near);
    for (int member = 0; member < kGroup; ++member) {
      if (near[member] > found.limit) continue;
      const int64_t leaf = group * kGroup + member;
      if (near[member] < nearest) {
        nearest = near[member];
        hint = leaf;
      }
      collect_leaf(cloud, leaf * kLeaf, query, found);
    }
  }
  return hint;
}

// The leaf nearest to a query, from its nearest group only: a good place to start, not more.
inline __attribute__((always_inline)) int64_t nearest_leaf(const Leaves& cloud, const double* query, double* bound) {
  distance_to_boxes(cloud.group, 0, cloud.group_count, query, bound);
  const int64_t group = std::min_element(bound, bound + cloud.group_count) - bound;
  double near[kGroup];
  distance_to_boxes(cloud.leaf, group * kGroup, kGroup, query, near);
  return group * kGroup + (std::min_element(near, near + kGroup) - near);
}

// Squared radius that holds the k points next to a leaf on the curve.
inline __attribute__((always_inline)) double bound_by_window(const Leaves& cloud, int64_t total, int64_t leaf, int64_t k, const double* query) {
  const int64_t first = std::max<int64_t>(0, std::min(leaf * kLeaf + kLeaf / 2 - k / 2, total - k));
  const double *x = &cloud.place[0][first], *y = &cloud.place[1][first], *z = &cloud.place[2][first];
  double most[kLanes] = {0};
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) {
      const double u = x[i + lane] - query[0], v = y[i + lane] - query[1], w = z[i + lane] - query[2];
      const double squared = u * u + v * v + w * w;
      most[lane] = squared > most[lane] ? squared : most[lane];
    }
  for (; i < k; ++i) {
    const double u = x[i] - query[0], v = y[i] - query[1], w = z[i] - query[2];
    most[0] = std::max(most[0], u * u + v * v + w * w);
  }
  return *std::max_element(most, most + kLanes);
}

// Sorts the candidates and writes the k best.
inline __attribute__((always_inline)) void finish(Candidates& found, double* distances, int64_t* indices) {
  const int64_t size = found.size, k = found.wanted, buckets = found.buckets;
  double* distance = found.distance.data();
  const double* squared = found.squared.data();
  Found* sorted = found.sorted.data();
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) distance[i] = std::sqrt(squared[i]);
  int64_t placed = size, crowd = size;
  if (found.limit > 1e-290 && found.limit < 1e290) {
    int32_t *bucket = found.bucket.data(), *start = found.start.data();
    // Of the root squared again: equal distances must fall into one bucket.
    const double scale = buckets / found.limit, last = buckets - 1;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const double place = distance[i] * distance[i] * scale;
      bucket[i] = static_cast<int32_t>(place < last ? place : last);
    }
    std::fill(start, start + buckets, 0);
    for (int64_t i = 0; i < size; ++i) ++start[bucket[i]];
    int32_t sum = 0, most = 0, end = 0;
    for (; end < buckets && sum < k; ++end) {
      const int32_t count = start[end];
      start[end] = sum;
      sum += count;
      most = std::max(most, count);
    }
    for (int64_t i = 0; i < size; ++i)
      if (bucket[i] < end) sorted[start[bucket[i]]++] = {distance[i], found.index[i]};
    placed = sum;
    crowd = most;
  } else {
    for (int64_t i = 0; i < size; ++i) sorted[i] = {distance[i], found.index[i]};
  }
  if (crowd > 32) {
    std::sort(sorted, sorted + placed);
  } else {
    for (int64_t i = 1; i < placed; ++i) {
      const Found one = sorted[i];
      int64_t at = i;
      for (; at > 0 && one < sorted[at - 1]; --at) sorted[at] = sorted[at - 1];
      sorted[at] = one;
    }
  }
  for (int64_t i = 0; i < k; ++i) {
    distances[i] = sorted[i].distance;
    indices[i] = sorted[i].index;
  }
}

MM3DAD_CLONES void search(const Leaves& cloud, int64_t total, const double* queries, const uint64_t* order, int64_t count, int64_t k,
                          double* distances, int64_t* indices) {
  std::vector<double> bound(cloud.group_count);
  Candidates found(k);
  const double* before = queries + 3 * order[0];
  int64_t hint = nearest_leaf(cloud, before, bound.data());
  double radius = kInfinity;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t q = static_cast<int64_t>(order[i]);
    const double* query = queries + 3 * q;
    const double u = query[0] - before[0], v = query[1] - before[1], w = query[2] - before[2];
    const double reach = radius + std::sqrt(u * u + v * v + w * w);
    // Rounding is far below the slack; should it ever lose a point, the search of everything below mends it.
    found.limit = std::min(reach * reach * (1 + 1e-9), bound_by_window(cloud, total, hint, k, query) * (1 + kTie));
    found.size = 0;
    hint = collect(cloud, query, bound.data(), found);
    if (found.size < k) {
      found.limit = kInfinity;
      found.size = 0;
      hint = collect(cloud, query, bound.data(), found);
    }
    finish(found, distances + q * k, indices + q * k);
    radius = distances[q * k + k - 1];
    before = query;
  }
}

}  // namespace nearest_neighbors_

std::tuple<Tensor, Tensor> nearest_neighbors(const Tensor& queries, const Tensor& points, int64_t k, int64_t threads) {
  check_tensor(queries, 2, ScalarType::Double, "queries");
  check_tensor(points, 2, ScalarType::Double, "points");
  const int64_t count = queries.size(0), total = points.size(0);
  STD_TORCH_CHECK(queries.size(1) == 3 && points.size(1) == 3, "queries and points must be (Q, 3) and (N, 3)");
  STD_TORCH_CHECK(k >= 1 && k <= total && total < kNone, "k must be 1 to N, and N below 2^31 - 1");
  Tensor distances = torch::stable::new_empty(queries, {count, k});
  Tensor indices = torch::stable::new_empty(queries, {count, k}, ScalarType::Long);
  const double* from = queries.const_data_ptr<double>();
  double* to = fresh_data<double>(distances);
  int64_t* rows = fresh_data<int64_t>(indices);
  const Leaves cloud(points.const_data_ptr<double>(), total);
  const std::vector<uint64_t> order = sort_along_curve(from, count);
  constexpr int64_t block = 256;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t first = 0; first < count; first += block)
    nearest_neighbors_::search(cloud, total, from, &order[first], std::min(block, count - first), k, to, rows);
  return {distances, indices};
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) {
  m.def("nearest_neighbors(Tensor queries, Tensor points, int k, int threads) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) { m.impl("nearest_neighbors", TORCH_BOX(&mm3dad::nearest_neighbors)); }
