// The k nearest points of each query, exact in float64: ordered by distance, equal distances by the lowest index.
//
// Queries come along the curve, so that the one before tells how far to look. Everything within that limit is collected; buckets of squared distance, which a surface fills evenly, then order it in linear time.
// Files that include this need `-ffp-contract=off` (see leaves.h).
#pragma once

#include "leaves.h"

#include <cmath>

namespace mm3dad {

constexpr double kTie = 1e-15;  // squared distances this close may have one and the same root
constexpr int kBatch = 16;      // queries that share a pool
constexpr int kCrowd = 32;      // entries in one bucket, beyond which a plain sort is the better one

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
  std::vector<int32_t> index, bucket, end;
  std::vector<Found> sorted;
  bool is_bucketed = false;

  explicit Candidates(int64_t k)
      : wanted(k), buckets(k <= 128 ? 128 : 1024), squared(4 * k + 1024), distance(squared.size()), index(squared.size()),
        bucket(squared.size()), end(buckets), sorted(squared.size()) {}

  void cut_back() {
    for (int64_t i = 0; i < size; ++i) sorted[i] = {std::sqrt(squared[i]), static_cast<int32_t>(i)};
    const auto less = [this](const Found& a, const Found& b) {
      return a.distance < b.distance || (a.distance == b.distance && index[a.index] < index[b.index]);
    };
    std::nth_element(sorted.begin(), sorted.begin() + wanted - 1, sorted.begin() + size, less);
    limit = squared[sorted[wanted - 1].index];
    limit += limit * kTie;
    std::sort(sorted.begin(), sorted.begin() + wanted, [](const Found& a, const Found& b) { return a.index < b.index; });
    for (int64_t i = 0; i < wanted; ++i) {  // rows ascend, so that nothing is overwritten before it is moved
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
  const double limit = found.limit;
  const int32_t* index = &cloud.index[first];
  double* to = found.squared.data();
  int32_t* rows = found.index.data();
  int64_t size = found.size;
  for (int i = 0; i < kLeaf; ++i) {
    to[size] = squared[i];
    rows[size] = index[i];
    size += (squared[i] <= limit) & (index[i] != kNone);
  }
  found.size = size;
}

// Collects the points within the limit.
inline __attribute__((always_inline)) void collect(const Leaves& cloud, const double* query, double* bound, Candidates& found) {
  found.size = 0;
  distance_to_boxes(cloud.group, 0, cloud.group_count, query, bound);
  for (int64_t group = 0; group < cloud.group_count; ++group) {
    if (bound[group] > found.limit) continue;
    double near[kGroup];
    distance_to_boxes(cloud.leaf, group * kGroup, kGroup, query, near);
    for (int member = 0; member < kGroup; ++member)
      if (near[member] <= found.limit) collect_leaf(cloud, (group * kGroup + member) * kLeaf, query, found);
  }
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
  double most = 0;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < k; ++i) {
    const double u = x[i] - query[0], v = y[i] - query[1], w = z[i] - query[2];
    const double squared = u * u + v * v + w * w;
    most = squared > most ? squared : most;
  }
  return most;
}

// Roots of all candidates, put into buckets of rising distance; without buckets where the numbers are too extreme for them.
inline __attribute__((always_inline)) void fill_buckets(Candidates& found) {
  const int64_t size = found.size, buckets = found.buckets;
  double* distance = found.distance.data();
  const double* squared = found.squared.data();
  Found* sorted = found.sorted.data();
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) distance[i] = std::sqrt(squared[i]);
  found.is_bucketed = found.limit > 1e-290 && found.limit < 1e290;
  if (!found.is_bucketed) {
    for (int64_t i = 0; i < size; ++i) sorted[i] = {distance[i], found.index[i]};
    std::sort(sorted, sorted + size);
    return;
  }
  int32_t *bucket = found.bucket.data(), *end = found.end.data();
  // Of the root squared again: equal distances must fall into one bucket.
  const double scale = buckets / found.limit, last = buckets - 1;
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const double place = distance[i] * distance[i] * scale;
    bucket[i] = static_cast<int32_t>(place < last ? place : last);
  }
  std::fill(end, end + buckets, 0);
  for (int64_t i = 0; i < size; ++i) ++end[bucket[i]];
  int32_t sum = 0;
  for (int64_t b = 0; b < buckets; ++b) {
    const int32_t count = end[b];
    end[b] = sum;
    sum += count;
  }
  const int32_t* index = found.index.data();
  for (int64_t i = 0; i < size; ++i) sorted[end[bucket[i]]++] = {distance[i], index[i]};
}

// After fill_buckets: the first `count` of `sorted` become the `count` best, in any order but for the last, which is the furthest.
inline __attribute__((always_inline)) void split_at(Candidates& found, int64_t count) {
  if (!found.is_bucketed) return;
  const int32_t* end = found.end.data();
  const int64_t b = std::lower_bound(end, end + found.buckets, static_cast<int32_t>(count)) - end;
  Found* sorted = found.sorted.data();
  const int64_t from = b ? end[b - 1] : 0, to = end[b];
  if (to - from > kCrowd) {
    std::sort(sorted + from, sorted + to);
    return;
  }
  for (int64_t i = from + 1; i < to; ++i) {
    const Found one = sorted[i];
    int64_t at = i;
    for (; at > from && one < sorted[at - 1]; --at) sorted[at] = sorted[at - 1];
    sorted[at] = one;
  }
}

// After fill_buckets: the first k of `sorted` become the k best, in order.
inline __attribute__((always_inline)) void sort_best(Candidates& found) {
  if (!found.is_bucketed) return;
  Found* sorted = found.sorted.data();
  const int32_t* end = found.end.data();
  int64_t from = 0;
  for (int64_t b = 0; from < found.wanted; ++b) {
    const int64_t to = end[b];
    if (to - from > kCrowd) std::sort(sorted + from, sorted + to);
    from = to;
  }
  for (int64_t i = 1; i < from; ++i) {
    const Found one = sorted[i];
    int64_t at = i;
    for (; at > 0 && one < sorted[at - 1]; --at) sorted[at] = sorted[at - 1];
    sorted[at] = one;
  }
}

// The smallest box around some points.
struct Box {
  double low[3] = {kInfinity, kInfinity, kInfinity}, high[3] = {-kInfinity, -kInfinity, -kInfinity};

  inline __attribute__((always_inline)) void include(const double* point) {
    for (int axis = 0; axis < 3; ++axis) {
      low[axis] = std::min(low[axis], point[axis]);
      high[axis] = std::max(high[axis], point[axis]);
    }
  }
  inline __attribute__((always_inline)) double extent() const {  // squared
    double sum = 0;
    for (int axis = 0; axis < 3; ++axis) sum += (high[axis] - low[axis]) * (high[axis] - low[axis]);
    return sum;
  }
};

// Points that some queries side by side have in common: all within `limit` of their box, in the order of the curve.
struct Pool {
  std::array<std::vector<double>, 3> place;
  std::vector<int32_t> index;
  std::vector<double> squared;
  int64_t room, size = 0;
  double limit = 0;

  explicit Pool(int64_t points) : index(points), squared(points), room(points / kLanes * kLanes) {
    for (auto& axis : place) axis.resize(points);
  }
};

// Fills the pool for queries within a box; it stays empty, with a limit below 0, where there is no room for all.
inline __attribute__((always_inline)) void fill_pool(const Leaves& cloud, const Box& box, double limit, double* bound, Pool& pool) {
  pool.size = 0;
  pool.limit = limit;
  distance_to_boxes(cloud.group, 0, cloud.group_count, box.low, box.high, bound);
  for (int64_t group = 0; group < cloud.group_count; ++group) {
    if (bound[group] > limit) continue;
    double near[kGroup];
    distance_to_boxes(cloud.leaf, group * kGroup, kGroup, box.low, box.high, near);
    for (int member = 0; member < kGroup; ++member) {
      if (near[member] > limit) continue;
      if (pool.size + kLeaf > pool.room) {
        pool.size = 0;
        pool.limit = -1;
        return;
      }
      const int64_t first = (group * kGroup + member) * kLeaf;
      double squared[kLeaf];
      const double *x = &cloud.place[0][first], *y = &cloud.place[1][first], *z = &cloud.place[2][first];
#pragma omp simd
      for (int i = 0; i < kLeaf; ++i) {
        const double u = gap(x[i], x[i], box.low[0], box.high[0]), v = gap(y[i], y[i], box.low[1], box.high[1]);
        const double w = gap(z[i], z[i], box.low[2], box.high[2]);
        squared[i] = u * u + v * v + w * w;
      }
      const int32_t* index = &cloud.index[first];
      int64_t size = pool.size;
      for (int i = 0; i < kLeaf; ++i) {
        for (int axis = 0; axis < 3; ++axis) pool.place[axis][size] = cloud.place[axis][first + i];
        pool.index[size] = index[i];
        size += (squared[i] <= limit) & (index[i] != kNone);
      }
      pool.size = size;
    }
  }
}

// Squared distances from a query to the points of the pool.
inline __attribute__((always_inline)) void measure_pool(Pool& pool, const double* query) {
  const double *x = pool.place[0].data(), *y = pool.place[1].data(), *z = pool.place[2].data();
  double* squared = pool.squared.data();
  const int64_t whole = (pool.size + kLanes - 1) / kLanes * kLanes;
#pragma omp simd
  for (int64_t i = 0; i < whole; ++i) {
    const double u = x[i] - query[0], v = y[i] - query[1], w = z[i] - query[2];
    squared[i] = u * u + v * v + w * w;
  }
}

// Collects the points of the pool within the limit.
inline __attribute__((always_inline)) void collect_pool(Pool& pool, const double* query, Candidates& found) {
  measure_pool(pool, query);
  const double *squared = pool.squared.data(), limit = found.limit;
  const int32_t* index = pool.index.data();
  double* to = found.squared.data();
  int32_t* rows = found.index.data();
  int64_t size = 0;
  for (int64_t i = 0; i < pool.size; ++i) {
    to[size] = squared[i];
    rows[size] = index[i];
    size += squared[i] <= limit;
  }
  found.size = size;
}

// Searches queries that lie along the curve: visit(row, found) orders the candidates (fill_buckets first), the k-th at its place.
//
// Density changes little from one query to the next, so that each is looked for within little more than the radius of the one before:
// among the points near a batch of queries, which are gathered once. Should that have been too little, a search of its own finds all:
// within the radius of the query before plus the step between the two there must be k, and should rounding lose a point, without a limit.
template <typename Row, typename Visit>
inline __attribute__((always_inline)) void search_along(const Leaves& cloud, int64_t total, const double* queries, const Row* order,
                                                        int64_t count, int64_t k, const Visit& visit) {
  std::vector<double> bound(cloud.group_count);
  Candidates found(k);
  Pool pool(found.squared.size());
  double radius = kInfinity;
  // Points beyond the limit may be as far as the k-th when that lies on it.
  const auto is_answered = [&](int64_t i) __attribute__((always_inline)) {
    if (found.size < k) return false;
    visit(i, found);
    radius = found.sorted[k - 1].distance;
    return radius * radius <= found.limit * (1 - kTie / 2);
  };
  const auto row = [&](int64_t i) { return queries + 3 * static_cast<int64_t>(order[i]); };
  for (int64_t i = 0, last = 0; i < count; ++i) {
    const double *query = row(i), before = radius;
    bool is_done = false;
    if (i > 0 && i >= last) {
      Box box;
      for (last = i; last < std::min(count, i + kBatch); ++last) {
        Box wider = box;
        wider.include(row(last));
        if (last > i && wider.extent() > radius * radius) break;  // the pool of a wide box holds too much for each of them
        box = wider;
      }
      fill_pool(cloud, box, radius * radius * 1.3, bound.data(), pool);
    }
    for (const double limit : {std::min(pool.limit, radius * radius * 1.1), pool.limit}) {
      if (is_done || pool.size < k) break;
      found.limit = limit;
      collect_pool(pool, query, found);
      is_done = is_answered(i);
    }
    if (is_done) continue;
    double sure = bound_by_window(cloud, total, nearest_leaf(cloud, query, bound.data()), k, query) * (1 + kTie);
    if (i > 0) {
      const double u = query[0] - row(i - 1)[0], v = query[1] - row(i - 1)[1], w = query[2] - row(i - 1)[2];
      const double reach = before + std::sqrt(u * u + v * v + w * w);
      sure = std::min(sure, reach * reach * (1 + 1e-9));
    }
    for (const double limit : {sure, kInfinity}) {
      if (is_done) break;
      found.limit = limit;
      collect(cloud, query, bound.data(), found);
      is_done = is_answered(i);
    }
  }
}

}  // namespace mm3dad
