// Exact greedy k-centre (farthest-first traversal): a plain form and one that skips what the triangle inequality rules out.
//
// Both return the picks of the float64 algorithm: a float32 distance, whose relative error is bounded, only ever rules rows out;
// whatever it cannot rule out is measured again in float64. Ties go to the lowest row, no row comes twice.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <queue>
#include <tuple>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MM3DAD_KCENTER_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MM3DAD_KCENTER_CLONES
#endif

namespace mm3dad {
namespace k_center {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Distances are compared unsquared in the triangle inequality; this covers the rounding of both sides.
constexpr double kSlack = 1e-9;
constexpr int kHead = 32;
constexpr int64_t kSampled = 1024;   // rows that tell whether skipping pays
constexpr int64_t kFirstCheck = 8;   // picks before the first such look; the next ones follow at half as many again
constexpr double kWorthwhile = 0.5;  // share of skipped rows from which the lazy form is taken
constexpr size_t kParallel = 16384;  // members from which a step is shared among threads: below, waiting for them costs more
constexpr int kLanes = 16;           // rows compared side by side
constexpr int kStage = 8;            // coordinates between two looks at whether any of them is still open

MM3DAD_KCENTER_CLONES float squared_single(const float* a, const float* b, int64_t width) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) {
    const float d = a[i] - b[i];
    sum += d * d;
  }
  return sum;
}

MM3DAD_KCENTER_CLONES double squared_double(const float* a, const float* b, int64_t width) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += d * d;
  }
  return sum;
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
        shrink(1.0 - (width_ + 4) * static_cast<double>(std::numeric_limits<float>::epsilon())),
        least(2.0 * width_ * std::numeric_limits<float>::min()) {}

  const float* row(int64_t i) const { return data + i * width; }

  void prefetch(int64_t i) const {
#if defined(__GNUC__)
    const float* at = row(i);
    for (int64_t k = 0; k < width && k < 128; k += 16) __builtin_prefetch(at + k);
#endif
  }

  // The squared distance where it is below `limit`, else anything that is not.
  double below(int64_t i, const float* center, double limit) const {
    const float quick = squared_single(row(i), center, width);
    if (std::isfinite(quick) && quick * shrink - least >= limit) return kInfinity;
    return squared_double(row(i), center, width);
  }
};

// Lowest row among those of the largest distance.
inline bool ahead(double d, int64_t i, double best, int64_t best_index) { return d > best || (d == best && i < best_index); }

// One step of the plain algorithm: bring all distances up to date with `center`, return the next pick.
int64_t plain_step(const Rows& rows, int64_t center, double* distance, int32_t* owner, int32_t label, int threads) {
  double best = -kInfinity;
  int64_t best_index = rows.count;
  const float* z = rows.row(center);
#pragma omp parallel num_threads(threads)
  {
    double mine = -kInfinity;
    int64_t mine_index = rows.count;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows.count; ++i) {
      const double d = rows.below(i, z, distance[i]);
      if (d < distance[i]) {
        distance[i] = d;
        owner[i] = label;
      }
      if (i == center) {
        distance[i] = -kInfinity;
        owner[i] = label;
      }
      if (ahead(distance[i], i, mine, mine_index)) mine = distance[i], mine_index = i;
    }
#pragma omp critical
    if (ahead(mine, mine_index, best, best_index)) best = mine, best_index = mine_index;
  }
  return best_index;
}

// The leading coordinates of the rows in a rotated frame. The distance in them is a lower bound of the true one, but for `slack`, by
// which the rotation may have moved it; where few directions hold most of the spread, it settles most comparisons at little cost.
struct Heads {
  const float* data;  // (N, kHead)
  double slack;

  const float* row(int64_t i) const { return data + i * kHead; }

  // Float32 squared head distances at or above this belong to true distances of at least `distance`; NaN: none is known to.
  float limit(double distance) const {
    const double reach = distance * (1 + kSlack) + slack;
    const double value = reach * reach * (1 + 4 * kHead * static_cast<double>(std::numeric_limits<float>::epsilon()));
    if (!(value < std::numeric_limits<float>::max())) return std::numeric_limits<float>::quiet_NaN();
    return std::max(static_cast<float>(value), std::numeric_limits<float>::min());
  }
};

struct Member {
  double squared, reach;  // reach: twice the distance, with slack
  int64_t index;
};

inline Member make_member(double squared, int64_t index) { return {squared, 2 * std::sqrt(squared) * (1 + kSlack), index}; }

// Heads of a changing set, coordinate by coordinate, so that kLanes of them are compared at once.
struct Columns {
  std::vector<float> data;  // (kHead, capacity)
  std::vector<float> limit;
  size_t count = 0, capacity = 0;

  void reserve(size_t wanted) {
    if (wanted <= capacity) return;
    const size_t wider = (wanted + kLanes - 1) / kLanes * kLanes;
    std::vector<float> moved(kHead * wider, 0.0f);
    for (int i = 0; i < kHead; ++i) std::copy_n(data.data() + i * capacity, count, moved.data() + i * wider);
    data.swap(moved);
    limit.resize(wider, 0.0f);
    capacity = wider;
  }

  void push(const float* head, float bound) {
    if (count == capacity) reserve(2 * count + 1);
    for (int i = 0; i < kHead; ++i) data[i * capacity + count] = head[i];
    limit[count++] = bound;
  }

  void replace_by_last(size_t place) {
    --count;
    for (int i = 0; i < kHead; ++i) data[i * capacity + place] = data[i * capacity + count];
    limit[place] = limit[count];
  }
};

// Close the gaps that taking out these ascending places leaves.
template <typename T>
void close_gaps(T* values, size_t count, const std::vector<int32_t>& places) {
  T* to = values + places[0];
  for (size_t k = 0; k < places.size(); ++k)
    to = std::copy(values + places[k] + 1, values + (k + 1 < places.size() ? places[k + 1] : count), to);
}

struct Cluster {
  std::vector<Member> members;  // farthest first, lowest row first among equals; the centre itself is not among them
  Columns heads;                // theirs, in the same order
  int64_t center = 0;
  int64_t version = 0;
  int64_t slot = -1;  // place among the clusters that have members

  void fill(std::vector<Member>& source, const Heads& all) {
    std::sort(source.begin(), source.end(), [](const Member& a, const Member& b) { return ahead(a.squared, a.index, b.squared, b.index); });
    members.assign(source.begin(), source.end());
    heads.reserve(members.size());
    for (const Member& m : members) heads.push(all.row(m.index), all.limit(std::sqrt(m.squared)));
  }

  void drop(const std::vector<int32_t>& places) {
    close_gaps(members.data(), members.size(), places);
    for (int i = 0; i < kHead; ++i) close_gaps(heads.data.data() + i * heads.capacity, heads.count, places);
    close_gaps(heads.limit.data(), heads.count, places);
    heads.count -= places.size();
    members.resize(heads.count);
  }
};

// Append the places among the first `total` whose head distance to `z` stays below their limit.
MM3DAD_KCENTER_CLONES void scan(const Columns& columns, size_t total, const float* z, std::vector<int32_t>& found) {
  for (size_t first = 0; first < total; first += kLanes) {
    const float* data = columns.data.data() + first;
    const float* limit = columns.limit.data() + first;
    float sum[kLanes] = {};
    int open = 0;
    for (int stage = 0; stage < kHead; stage += kStage) {
      for (int i = stage; i < stage + kStage; ++i) {
        const float* column = data + i * columns.capacity;
        const float at = z[i];
#pragma omp simd simdlen(kLanes)
        for (int k = 0; k < kLanes; ++k) sum[k] += (column[k] - at) * (column[k] - at);
      }
      open = 0;
#pragma omp simd simdlen(kLanes) reduction(+ : open)
      for (int k = 0; k < kLanes; ++k) open += sum[k] >= limit[k] ? 0 : 1;
      if (!open) break;
    }
    if (!open) continue;
    const int lanes = static_cast<int>(std::min<size_t>(kLanes, total - first));
    for (int k = 0; k < lanes; ++k)
      if (!(sum[k] >= limit[k])) found.push_back(static_cast<int32_t>(first) + k);
  }
}

// Hand the members that are nearer to `pick` than to their centre over to it. Returns whether there were any.
bool take_members(const Rows& rows, const Heads& heads, int64_t pick, double gap, Cluster& cluster, std::vector<int32_t>& maybe,
                  std::vector<Member>& taken) {
  maybe.clear();
  const auto in_reach = [gap](const Member& m) { return gap < m.reach; };
  const auto end = std::partition_point(cluster.members.begin(), cluster.members.end(), in_reach);
  scan(cluster.heads, static_cast<size_t>(end - cluster.members.begin()), heads.row(pick), maybe);
  for (const int32_t k : maybe) rows.prefetch(cluster.members[k].index);
  size_t leaving = 0;
  for (const int32_t k : maybe) {
    const Member& m = cluster.members[k];
    if (m.index != pick) {
      const double squared = rows.below(m.index, rows.row(pick), m.squared);
      if (squared >= m.squared) continue;
      taken.push_back(make_member(squared, m.index));
    }
    maybe[leaving++] = k;
  }
  maybe.resize(leaving);
  if (leaving) cluster.drop(maybe);
  return leaving > 0;
}

// Share of sampled rows that the next pick can be kept away from without a full distance.
double pruned_share(const Rows& rows, const Heads& heads, const double* distance, const int32_t* owner, const int64_t* chosen, int64_t done,
                    int64_t next) {
  std::vector<double> to_center(done);
  for (int64_t c = 0; c < done; ++c) to_center[c] = std::sqrt(squared_double(rows.row(chosen[c]), rows.row(next), rows.width));
  const int64_t step = std::max<int64_t>(1, rows.count / kSampled);
  int64_t pruned = 0, looked = 0;
  for (int64_t i = 0; i < rows.count; i += step, ++looked) {
    const double mine = std::sqrt(std::max(distance[i], 0.0));
    pruned += to_center[owner[i]] >= 2 * mine * (1 + kSlack) || squared_single(heads.row(i), heads.row(next), kHead) >= heads.limit(mine);
  }
  return static_cast<double>(pruned) / looked;
}

// The lazy form, from the state that `done` plain steps have left.
void lazy_steps(const Rows& rows, const Heads& heads, const double* distance, const int32_t* owner, int64_t* chosen, int64_t done,
                int64_t count, int threads) {
  std::vector<Cluster> clusters;
  clusters.reserve(count);
  Columns centers;  // of the clusters that have members; `occupied` says which they are
  std::vector<int32_t> occupied;
  using Entry = std::tuple<double, int64_t, int32_t, int64_t>;  // squared distance, -row, cluster, version
  std::priority_queue<Entry> queue;
  auto announce = [&](int32_t c) {
    Cluster& cluster = clusters[c];
    ++cluster.version;
    if (cluster.members.empty()) {
      if (cluster.slot < 0) return;
      centers.replace_by_last(cluster.slot);
      clusters[occupied.back()].slot = cluster.slot;
      occupied[cluster.slot] = occupied.back();
      occupied.pop_back();
      cluster.slot = -1;
      return;
    }
    const Member& first = cluster.members[0];
    centers.limit[cluster.slot] = heads.limit(2 * std::sqrt(first.squared) * (1 + kSlack));
    queue.emplace(first.squared, -first.index, c, cluster.version);
  };
  auto open = [&](int64_t center, std::vector<Member>& members) {
    const int32_t c = static_cast<int32_t>(clusters.size());
    clusters.emplace_back();
    clusters[c].center = center;
    clusters[c].fill(members, heads);
    if (members.empty()) return;
    clusters[c].slot = static_cast<int64_t>(occupied.size());
    occupied.push_back(c);
    centers.push(heads.row(center), 0);
    announce(c);
  };
  std::vector<std::vector<Member>> owned(done);
  for (int64_t i = 0; i < rows.count; ++i)
    if (distance[i] >= 0) owned[owner[i]].push_back(make_member(distance[i], i));
  for (int64_t c = 0; c < done; ++c) open(chosen[c], owned[c]);

  std::vector<int32_t> places, candidates, changed;
  std::vector<Member> taken;
  for (; done < count; ++done) {
    Entry top;
    do {
      top = queue.top();
      queue.pop();
    } while (std::get<3>(top) != clusters[std::get<2>(top)].version);
    const int64_t next = -std::get<1>(top);
    const int32_t parent = std::get<2>(top);
    chosen[done] = next;
    places.clear();
    candidates.clear();
    changed.clear();
    taken.clear();
    scan(centers, centers.count, heads.row(next), places);
    size_t work = 0;
    for (const int32_t place : places) {
      const Cluster& cluster = clusters[occupied[place]];
      rows.prefetch(cluster.center);
      work += cluster.members.size();
      candidates.push_back(occupied[place]);
    }
#pragma omp parallel num_threads(threads) if (work > kParallel)
    {
      std::vector<Member> mine;
      std::vector<int32_t> touched, maybe;
#pragma omp for schedule(dynamic, 8)
      for (int64_t k = 0; k < static_cast<int64_t>(candidates.size()); ++k) {
        Cluster& cluster = clusters[candidates[k]];
        const double reach = 2 * std::sqrt(cluster.members[0].squared) * (1 + kSlack);
        const double squared = rows.below(cluster.center, rows.row(next), reach * reach);
        if (squared < reach * reach && take_members(rows, heads, next, std::sqrt(squared), cluster, maybe, mine))
          touched.push_back(candidates[k]);
      }
#pragma omp critical
      {
        taken.insert(taken.end(), mine.begin(), mine.end());
        changed.insert(changed.end(), touched.begin(), touched.end());
      }
    }
    // The pick was the first of its cluster; it is still there where nothing was in reach, as among duplicates of the centre.
    Cluster& home = clusters[parent];
    if (!home.members.empty() && home.members[0].index == next) home.drop({0});
    announce(parent);
    for (const int32_t c : changed)
      if (c != parent) announce(c);
    open(next, taken);
  }
}

void pick(const Rows& rows, const Heads* heads, int64_t count, int64_t start, int threads, int64_t* chosen) {
  std::vector<double> distance(rows.count, kInfinity);
  std::vector<int32_t> owner(rows.count, 0);
  int64_t next = start, check = kFirstCheck;
  for (int64_t done = 0; done < count; ++done) {
    if (heads && done == check) {
      check += check / 2;
      if (pruned_share(rows, *heads, distance.data(), owner.data(), chosen, done, next) > kWorthwhile) {
        lazy_steps(rows, *heads, distance.data(), owner.data(), chosen, done, count, threads);
        return;
      }
    }
    chosen[done] = next;
    next = plain_step(rows, next, distance.data(), owner.data(), static_cast<int32_t>(done), threads);
  }
}

}  // namespace k_center

torch::stable::Tensor k_center_op(const torch::stable::Tensor& rows, const torch::stable::Tensor& heads, double slack, int64_t count,
                                  int64_t start, int64_t threads) {
  torch::stable::Tensor chosen = torch::stable::new_empty(rows, {count}, torch::headeronly::ScalarType::Long);
  const k_center::Heads lead{static_cast<const float*>(heads.data_ptr()), slack};
  k_center::pick({static_cast<const float*>(rows.data_ptr()), rows.size(0), rows.size(1)}, &lead, count, start, static_cast<int>(threads),
                 static_cast<int64_t*>(chosen.data_ptr()));
  return chosen;
}

torch::stable::Tensor k_center_plain_op(const torch::stable::Tensor& rows, int64_t count, int64_t start, int64_t threads) {
  torch::stable::Tensor chosen = torch::stable::new_empty(rows, {count}, torch::headeronly::ScalarType::Long);
  k_center::pick({static_cast<const float*>(rows.data_ptr()), rows.size(0), rows.size(1)}, nullptr, count, start, static_cast<int>(threads),
                 static_cast<int64_t*>(chosen.data_ptr()));
  return chosen;
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) {
  m.def("k_center(Tensor rows, Tensor heads, float slack, int count, int start, int threads) -> Tensor");
  m.def("k_center_plain(Tensor rows, int count, int start, int threads) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) {
  m.impl("k_center", TORCH_BOX(&mm3dad::k_center_op));
  m.impl("k_center_plain", TORCH_BOX(&mm3dad::k_center_plain_op));
}
