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
constexpr int64_t kSampled = 1024;

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

struct Member {
  double squared, reach;  // reach: twice the distance, with slack
  int64_t index;
};

struct Cluster {
  std::vector<Member> members;  // the centre itself is not among them
  int64_t center;
  double squared = -kInfinity;  // the farthest member's
  int64_t farthest = std::numeric_limits<int64_t>::max();
  double anchor_distance = 0;
  int32_t anchor = 0;
  int64_t version = 0;

  void settle() {
    squared = -kInfinity;
    farthest = std::numeric_limits<int64_t>::max();
    for (const Member& m : members)
      if (ahead(m.squared, m.index, squared, farthest)) squared = m.squared, farthest = m.index;
  }
  double reach() const { return members.empty() ? -1.0 : 2.0 * std::sqrt(squared) * (1 + kSlack); }
};

inline Member make_member(double squared, int64_t index) { return {squared, 2.0 * std::sqrt(squared) * (1 + kSlack), index}; }

// Share of sampled rows that the next pick could be kept away from by the triangle inequality.
double pruned_share(const Rows& rows, const double* distance, const int32_t* owner, const int64_t* chosen, int64_t done, int64_t next) {
  std::vector<double> to_center(done);
  for (int64_t c = 0; c < done; ++c) to_center[c] = std::sqrt(squared_double(rows.row(chosen[c]), rows.row(next), rows.width));
  const int64_t step = std::max<int64_t>(1, rows.count / kSampled);
  int64_t pruned = 0, looked = 0;
  for (int64_t i = 0; i < rows.count; i += step, ++looked)
    pruned += distance[i] < 0 || to_center[owner[i]] >= 2.0 * std::sqrt(distance[i]) * (1 + kSlack);
  return static_cast<double>(pruned) / looked;
}

// The lazy form, from the state that `done` plain steps have left. `next` is the pick that comes.
void lazy_steps(const Rows& rows, const double* distance, const int32_t* owner, int64_t* chosen, int64_t done, int64_t count,
                int64_t next, int threads) {
  std::vector<Cluster> clusters(done);
  clusters.reserve(count);
  for (int64_t c = 0; c < done; ++c) clusters[c].center = chosen[c];
  for (int64_t i = 0; i < rows.count; ++i)
    if (distance[i] >= 0) clusters[owner[i]].members.push_back(make_member(distance[i], i));
  // Centres themselves are pruned by their distance to a few anchors, the earliest picks.
  const int64_t anchors = std::min<int64_t>(done, std::max<int64_t>(1, static_cast<int64_t>(std::sqrt(2.0 * count))));
  std::vector<std::vector<int32_t>> near(anchors);  // clusters by nearest anchor, those without members dropped in passing
  using Entry = std::tuple<double, int64_t, int32_t, int64_t>;  // distance, -row, cluster, version
  std::priority_queue<Entry> queue;
  auto announce = [&](int32_t c) {
    Cluster& cluster = clusters[c];
    cluster.settle();
    ++cluster.version;
    if (!cluster.members.empty()) queue.emplace(cluster.squared, -cluster.farthest, c, cluster.version);
  };
  std::vector<double> to_anchor(anchors);
  auto moor = [&](int32_t c) {
    Cluster& cluster = clusters[c];
    cluster.anchor_distance = kInfinity;
    for (int64_t a = 0; a < anchors; ++a)
      if (to_anchor[a] < cluster.anchor_distance) cluster.anchor_distance = to_anchor[a], cluster.anchor = static_cast<int32_t>(a);
    near[cluster.anchor].push_back(c);
  };
  auto measure_anchors = [&](const float* z) {
    for (int64_t a = 0; a < anchors; ++a) to_anchor[a] = std::sqrt(squared_double(rows.row(chosen[a]), z, rows.width));
  };
  for (int32_t c = 0; c < done; ++c) {
    measure_anchors(rows.row(clusters[c].center));
    moor(c);
    announce(c);
  }
  std::vector<int32_t> candidates;
  std::vector<char> changed;
  std::vector<Member> taken;
  for (; done < count; ++done) {
    // `next` is given once, from the plain steps; from then on the queue knows it, and it is the same row.
    Entry top;
    do {
      top = queue.top();
      queue.pop();
    } while (std::get<3>(top) != clusters[std::get<2>(top)].version);
    next = -std::get<1>(top);
    const int32_t parent = std::get<2>(top);
    const float* z = rows.row(next);
    chosen[done] = next;
    measure_anchors(z);
    candidates.clear();
    int64_t work = 0;
    for (int64_t a = 0; a < anchors; ++a) {
      std::vector<int32_t>& list = near[a];
      size_t kept = 0;
      for (const int32_t c : list) {
        const Cluster& cluster = clusters[c];
        if (cluster.members.empty()) continue;
        list[kept++] = c;
        const double apart = std::abs(to_anchor[a] - cluster.anchor_distance) - kSlack * (to_anchor[a] + cluster.anchor_distance);
        if (c != parent && apart >= cluster.reach()) continue;
        candidates.push_back(c);
        work += static_cast<int64_t>(cluster.members.size()) + 1;
      }
      list.resize(kept);
    }
    changed.assign(candidates.size(), 0);
    taken.clear();
#pragma omp parallel num_threads(threads) if (work * rows.width > 100000)
    {
      std::vector<Member> mine;
#pragma omp for schedule(dynamic, 8)
      for (int64_t k = 0; k < static_cast<int64_t>(candidates.size()); ++k) {
        Cluster& cluster = clusters[candidates[k]];
        const double reach = cluster.reach();
        const double squared = rows.below(cluster.center, z, reach * reach);
        if (squared >= reach * reach) continue;
        const double gap = std::sqrt(squared);
        size_t kept = 0;
        for (const Member& m : cluster.members) {
          if (m.index == next) continue;
          if (gap < m.reach) {
            const double d = rows.below(m.index, z, m.squared);
            if (d < m.squared) {
              mine.push_back(make_member(d, m.index));
              continue;
            }
          }
          cluster.members[kept++] = m;
        }
        changed[k] = kept < cluster.members.size();
        cluster.members.resize(kept);
      }
#pragma omp critical
      taken.insert(taken.end(), mine.begin(), mine.end());
    }
    // Duplicates of a centre are at distance zero and in nobody's reach: the pick among them leaves its cluster here.
    std::vector<Member>& home = clusters[parent].members;
    const auto self = std::find_if(home.begin(), home.end(), [&](const Member& m) { return m.index == next; });
    if (self != home.end()) home.erase(self);
    bool parent_announced = false;
    for (size_t k = 0; k < candidates.size(); ++k)
      if (changed[k] || candidates[k] == parent) {
        parent_announced |= candidates[k] == parent;
        announce(candidates[k]);
      }
    if (!parent_announced) announce(parent);
    clusters.emplace_back();
    clusters.back().center = next;
    clusters.back().members = taken;
    const int32_t label = static_cast<int32_t>(done);
    moor(label);
    announce(label);
  }
}

void pick(const float* data, int64_t total, int64_t width, int64_t count, int64_t start, bool plain, int threads, int64_t* chosen) {
  const Rows rows(data, total, width);
  std::vector<double> distance(total, kInfinity);
  std::vector<int32_t> owner(total, 0);
  int64_t next = start, check = 16;
  for (int64_t done = 0; done < count; ++done) {
    if (!plain && done == check) {
      check += check / 2;
      if (pruned_share(rows, distance.data(), owner.data(), chosen, done, next) > 0.5) {
        lazy_steps(rows, distance.data(), owner.data(), chosen, done, count, next, threads);
        return;
      }
    }
    chosen[done] = next;
    next = plain_step(rows, next, distance.data(), owner.data(), static_cast<int32_t>(done), threads);
  }
}

}  // namespace k_center

torch::stable::Tensor k_center_op(const torch::stable::Tensor& rows, int64_t count, int64_t start, bool plain, int64_t threads) {
  torch::stable::Tensor chosen = torch::stable::new_empty(rows, {count}, torch::headeronly::ScalarType::Long);
  k_center::pick(static_cast<const float*>(rows.data_ptr()), rows.size(0), rows.size(1), count, start, plain, static_cast<int>(threads),
                 static_cast<int64_t*>(chosen.data_ptr()));
  return chosen;
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) { m.def("k_center(Tensor rows, int count, int start, bool plain, int threads) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) { m.impl("k_center", TORCH_BOX(&mm3dad::k_center_op)); }
