// flags: -ffp-contract=off
// Exact greedy k-centre (farthest-first traversal): a plain form (k_center_plain.h) and one that skips what the triangle inequality rules out.
//
// Both return the picks of the float64 algorithm: a short form of a row (float32, 16 bits, a head), whose error is bounded, only ever rules
// rows out; whatever it cannot rule out is measured again in float64. Ties go to the lowest row, no row comes twice.

#include "k_center_heads.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <queue>
#include <tuple>
#include <vector>

namespace mm3dad {
namespace k_center {

constexpr int64_t kFirstCheck = 8;   // picks before the first look at whether skipping pays; the next follow at half as many again
constexpr double kWorthwhile = 0.5;  // share of skipped rows from which the lazy form is taken
constexpr size_t kBatch = 32;        // picks looked at together
constexpr int64_t kRoughFrom = 64;   // steps left from which rounding all rows pays
constexpr int kStage = 8;            // coordinates between two looks at whether any of them is still open

struct Member {
  double squared, reach;  // squared: to the centre, -1 once it has left; reach: twice the distance, with slack
  int64_t index;
};

inline Member make_member(double squared, int64_t index) { return {squared, 2 * std::sqrt(squared) * (1 + kSlack), index}; }

// Heads of a changing set, in blocks of kLanes that hold coordinate after coordinate and then the limits. A limit of 0 rules out.
struct Blocks {
  static constexpr size_t kBlock = (kHead + 1) * kLanes;
  std::vector<float> data;
  size_t count = 0;

  float& at(size_t place, int coordinate) { return data[place / kLanes * kBlock + coordinate * kLanes + place % kLanes]; }
  float& limit(size_t place) { return at(place, kHead); }

  void push(const float* head, float bound) {
    if (count % kLanes == 0) data.resize(data.size() + kBlock, 0.0f);
    for (int i = 0; i < kHead; ++i) at(count, i) = head[i];
    limit(count++) = bound;
  }

  void replace_by_last(size_t place) {
    --count;
    for (int i = 0; i <= kHead; ++i) at(place, i) = at(count, i);
    limit(count) = 0;
    if (count % kLanes == 0) data.resize(data.size() - kBlock);
  }
};

struct Found {
  int32_t place;
  float squared;  // of the heads
};

// Append what lies in blocks `first` to `last` and whose head distance to `z` stays below its limit.
MM3DAD_CLONES void scan(const Blocks& blocks, size_t first, size_t last, const float* z, std::vector<Found>& found) {
  for (size_t block = first; block < last; ++block) {
    const float* data = blocks.data.data() + block * Blocks::kBlock;
    const float* limit = data + kHead * kLanes;
    float sum[kLanes] = {};
    int open = 0;
    for (int stage = 0; stage < kHead; stage += kStage) {
      for (int i = stage; i < stage + kStage; ++i) {
        const float at = z[i];
#pragma omp simd simdlen(kLanes)
        for (int k = 0; k < kLanes; ++k) sum[k] += (data[i * kLanes + k] - at) * (data[i * kLanes + k] - at);
      }
      open = 0;
#pragma omp simd simdlen(kLanes) reduction(+ : open)
      for (int k = 0; k < kLanes; ++k) open += sum[k] >= limit[k] ? 0 : 1;
      if (!open) break;
    }
    if (!open) continue;
    // The lanes behind the last place hold zeros, and the difference to a head that is not finite rules nothing out.
    const int used = static_cast<int>(std::min<size_t>(kLanes, blocks.count - block * kLanes));
    for (int k = 0; k < used; ++k)
      if (!(sum[k] >= limit[k])) found.push_back({static_cast<int32_t>(block * kLanes) + k, sum[k]});
  }
}

inline size_t blocks_of(size_t count) { return (count + kLanes - 1) / kLanes; }

struct Cluster {
  std::vector<Member> members;  // farthest first, lowest row first among equals; the centre itself is not among them
  Blocks heads;                 // theirs, in the same order
  size_t first = 0, left = 0;   // the first member that has not left, and how many there are
  int64_t version = 0;
  int64_t slot = -1;  // place among the clusters that have members

  const Member& farthest() const { return members[first]; }

  // Fetch what a scan reads first: its blocks lie all over the memory, and waiting for them is what most of the time would go to.
  void prefetch(bool inside) const {
#if defined(__GNUC__)
    if (!inside) return __builtin_prefetch(this), __builtin_prefetch(reinterpret_cast<const char*>(this) + 64);
    const float* block = heads.data.data() + first / kLanes * Blocks::kBlock;
    for (int i = 0; i < 2 * kStage; ++i) __builtin_prefetch(block + i * kLanes);
    __builtin_prefetch(block + kHead * kLanes);
    __builtin_prefetch(members.data() + first / kLanes * kLanes);
#endif
  }

  void fill(std::vector<Member>& source, const Heads& all) {
    std::sort(source.begin(), source.end(), [](const Member& a, const Member& b) { return ahead(a.squared, a.index, b.squared, b.index); });
    set(source, all);
  }

  void set(const std::vector<Member>& sorted, const Heads& all) {
    members = sorted;
    heads = Blocks();
    heads.data.reserve(blocks_of(members.size()) * Blocks::kBlock);
    for (const Member& m : members) heads.push(all.row(m.index), all.limit(std::sqrt(m.squared)));
    first = 0;
    left = members.size();
  }

  void drop(size_t place) {
    members[place].squared = -1;
    heads.limit(place) = 0;
    --left;
    while (first < members.size() && members[first].squared < 0) ++first;
  }

  // Close the gaps once they are most of what a scan would look at.
  void tidy(const Heads& all) {
    if (members.size() - first < 2 * left + kLanes) return;
    std::vector<Member> kept;
    kept.reserve(left);
    for (size_t i = first; i < members.size(); ++i)
      if (members[i].squared >= 0) kept.push_back(members[i]);
    set(kept, all);
  }
};

MM3DAD_CLONES double distance_below(const Rows& rows, int64_t i, const float* z, double limit) { return rows.below(i, z, limit); }

// A pick that comes near to a cluster: `order` is its place among those looked at together, `gap` what lies between the centres at least.
struct Visit {
  int32_t cluster, order;
  double gap;
};

// A member that lies nearer to a pick than to its centre.
struct Claim {
  int32_t cluster, place, order;
  double squared;

  bool operator<(const Claim& other) const {
    return std::tie(cluster, place, squared, order) < std::tie(other.cluster, other.place, other.squared, other.order);
  }
  bool same_member(const Claim& other) const { return cluster == other.cluster && place == other.place; }
};

// Append the members of a visited cluster that are nearer to the pick than to their centre.
void claim_members(const Rows& rows, const Heads& heads, int64_t pick, const Visit& visit, const Cluster& cluster, std::vector<Found>& maybe,
                   std::vector<Claim>& claims) {
  maybe.clear();
  const size_t begin = cluster.first / kLanes, every = blocks_of(cluster.members.size());
  size_t end = begin;
  while (end < every && visit.gap < cluster.members[end * kLanes].reach) ++end;
  scan(cluster.heads, begin, end, heads.row(pick), maybe);
  for (const Found& f : maybe) rows.prefetch(cluster.members[f.place].index);
  for (const Found& f : maybe) {
    const Member& m = cluster.members[f.place];
    if (m.squared < 0) continue;
    const double squared = distance_below(rows, m.index, rows.row(pick), m.squared);
    if (squared < m.squared) claims.push_back({visit.cluster, f.place, visit.order, squared});
  }
}

// A sample of the rows with its heads: what tells whether skipping pays costs next to nothing where it does not.
struct Look {
  Frame frame;
  int64_t step;
  Heads heads;  // of every `step`-th row

  explicit Look(const Rows& rows) : frame(rows), step(std::max<int64_t>(1, rows.count / kSampled)) {
    std::vector<float> sample;
    for (int64_t i = 0; i < rows.count; i += step) sample.insert(sample.end(), rows.row(i), rows.row(i) + rows.width);
    heads = make_heads({sample.data(), static_cast<int64_t>(sample.size()) / rows.width, rows.width}, frame, 1);
  }

  // Share of the sample that the next pick can be kept away from without a full distance.
  double pruned_share(const Rows& rows, const double* distance, const int32_t* owner, const int64_t* chosen, int64_t done, int64_t next) const {
    std::vector<double> to_center(done);
    for (int64_t c = 0; c < done; ++c) to_center[c] = std::sqrt(squared_double(rows.row(chosen[c]), rows.row(next), rows.width));
    const Heads own = make_heads({rows.row(next), 1, rows.width}, frame, 1);
    int64_t pruned = 0, looked = 0;
    for (int64_t i = 0; i < rows.count; i += step, ++looked) {
      const double mine = std::sqrt(std::max(distance[i], 0.0));
      const float apart = squared_single(heads.row(looked), own.row(0), kHead);
      pruned += to_center[owner[i]] >= 2 * mine * (1 + kSlack) || apart >= heads.limit(mine);
    }
    return static_cast<double>(pruned) / looked;
  }
};

// The lazy form, from the state that `done` plain steps have left.
void lazy_steps(const Rows& rows, const Heads& heads, const double* distance, const int32_t* owner, int64_t* chosen, int64_t done,
                int64_t count, int threads) {
  std::vector<Cluster> clusters;
  clusters.reserve(count);
  Blocks centers;  // of the clusters that have members; `occupied` says which they are
  std::vector<int32_t> occupied;
  using Entry = std::tuple<double, int64_t, int32_t, int64_t>;  // squared distance, -row, cluster, version
  std::priority_queue<Entry> queue;
  auto announce = [&](int32_t c) {
    Cluster& cluster = clusters[c];
    ++cluster.version;
    if (!cluster.left) {
      centers.replace_by_last(cluster.slot);
      clusters[occupied.back()].slot = cluster.slot;
      occupied[cluster.slot] = occupied.back();
      occupied.pop_back();
      cluster = Cluster();  // nothing joins it again, and what the queue holds of it has another version
      return;
    }
    const Member& first = cluster.farthest();
    centers.limit(cluster.slot) = heads.limit(2 * std::sqrt(first.squared) * (1 + kSlack));
    queue.emplace(first.squared, -first.index, c, cluster.version);
  };
  auto open = [&](int64_t center, std::vector<Member>& members) {
    const int32_t c = static_cast<int32_t>(clusters.size());
    clusters.emplace_back();
    if (members.empty()) return;
    clusters[c].fill(members, heads);
    clusters[c].slot = static_cast<int64_t>(occupied.size());
    occupied.push_back(c);
    centers.push(heads.row(center), 0);
    announce(c);
  };
  std::vector<std::vector<Member>> owned(done);
  for (int64_t i = 0; i < rows.count; ++i)
    if (distance[i] >= 0) owned[owner[i]].push_back(make_member(distance[i], i));
  for (int64_t c = 0; c < done; ++c) open(chosen[c], owned[c]);

  // Distances can only shrink: the farthest member is the next pick for certain where no pick of the batch is nearer to it than its
  // centre; else the batch ends. A batch is looked at together, which gives the threads enough to do.
  std::vector<int64_t> picks;
  std::vector<std::vector<Member>> taken(kBatch);
  std::vector<std::vector<Visit>> parts(threads);
  std::vector<Visit> visits;
  size_t work = rows.count;  // members that a pick came near to, in the last batch
  std::vector<Claim> claims;
  while (done < count) {
    picks.clear();
    while (picks.size() < kBatch && done < count) {
      while (std::get<3>(queue.top()) != clusters[std::get<2>(queue.top())].version) queue.pop();
      const double squared = std::get<0>(queue.top());
      const int64_t next = -std::get<1>(queue.top());
      const int32_t home = std::get<2>(queue.top());
      const auto reaches = [&](int64_t pick) { return distance_below(rows, pick, rows.row(next), squared) < squared; };
      if (std::any_of(picks.begin(), picks.end(), reaches)) break;
      queue.pop();
      picks.push_back(chosen[done++] = next);
      clusters[home].drop(clusters[home].first);
      announce(home);
    }
    const int together = static_cast<int>(picks.size());
    claims.clear();
    visits.clear();
#pragma omp parallel num_threads(threads) if (work * together > kParallel)
    {
      std::vector<Claim> mine;
      std::vector<Found> maybe;
      // All picks at one block of centres, then the next: what a cluster holds is fetched once for the whole batch.
#pragma omp for schedule(static)
      for (int t = 0; t < threads; ++t) {
        parts[t].clear();
        const size_t blocks = blocks_of(centers.count);
        for (size_t block = blocks * t / threads; block < blocks * (t + 1) / threads; ++block)
          for (int p = 0; p < together; ++p) {
            maybe.clear();
            scan(centers, block, block + 1, heads.row(picks[p]), maybe);
            for (const Found& f : maybe) parts[t].push_back({occupied[f.place], p, heads.reached(f.squared)});
          }
      }
#pragma omp single
      for (const std::vector<Visit>& part : parts) visits.insert(visits.end(), part.begin(), part.end());
#pragma omp for schedule(dynamic, 32)
      for (int64_t v = 0; v < static_cast<int64_t>(visits.size()); ++v) {
        if (v + 2 < static_cast<int64_t>(visits.size())) clusters[visits[v + 2].cluster].prefetch(false);
        if (v + 1 < static_cast<int64_t>(visits.size())) clusters[visits[v + 1].cluster].prefetch(true);
        claim_members(rows, heads, picks[visits[v].order], visits[v], clusters[visits[v].cluster], maybe, mine);
      }
#pragma omp critical
      claims.insert(claims.end(), mine.begin(), mine.end());
    }
    work = 0;
    for (const Visit& visit : visits) work += clusters[visit.cluster].left;
    work /= together;
    std::sort(claims.begin(), claims.end());
    for (std::vector<Member>& members : taken) members.clear();
    for (size_t i = 0; i < claims.size(); ++i) {
      const Claim& claim = claims[i];
      Cluster& from = clusters[claim.cluster];
      if (i == 0 || !claim.same_member(claims[i - 1])) {
        taken[claim.order].push_back(make_member(claim.squared, from.members[claim.place].index));
        from.drop(claim.place);
      }
      if (i + 1 == claims.size() || claims[i + 1].cluster != claim.cluster) {
        from.tidy(heads);
        announce(claim.cluster);
      }
    }
    for (int p = 0; p < together; ++p) open(picks[p], taken[p]);
  }
}

void pick(const Rows& rows, bool lazy, int64_t count, int64_t start, int threads, int64_t* chosen) {
  std::vector<double> distance(rows.count, kInfinity);
  std::vector<int32_t> owner(rows.count, 0);
  std::unique_ptr<const Look> look;
  std::unique_ptr<Rough> rough;
  int64_t next = start, check = kFirstCheck;
  for (int64_t done = 0; done < count; ++done) {
    if (lazy && done == check) {
      check += check / 2;
      if (!look) look.reset(new Look(rows));
      if (look->pruned_share(rows, distance.data(), owner.data(), chosen, done, next) > kWorthwhile) {
        rough.reset();
        lazy_steps(rows, make_heads(rows, look->frame, threads), distance.data(), owner.data(), chosen, done, count, threads);
        return;
      }
      if (!rough && count - done > kRoughFrom) rough.reset(new Rough(rows, distance.data()));
      if (rough && !rough->usable()) rough.reset();
    }
    chosen[done] = next;
    // Before the first look the lazy form is still likely, and few steps are not worth a team of threads.
    const int workers = lazy && done < kFirstCheck ? 1 : threads;
    next = plain_step(rows, next, distance.data(), owner.data(), static_cast<int32_t>(done), workers, rough.get());
  }
}

}  // namespace k_center

Tensor k_center_op(const Tensor& rows, int64_t count, int64_t start, int64_t threads) {
  check_tensor(rows, 2, ScalarType::Float, "rows");
  const int64_t total = rows.size(0);
  STD_TORCH_CHECK(count >= 1 && count <= total && start >= 0 && start < total && total < INT32_MAX, "count or start is out of range");
  Tensor chosen = torch::stable::new_empty(rows, {count}, ScalarType::Long);
  const k_center::Rows from(rows.const_data_ptr<float>(), total, rows.size(1));
  k_center::pick(from, true, count, start, static_cast<int>(threads), chosen.mutable_data_ptr<int64_t>());
  return chosen;
}

Tensor k_center_plain_op(const Tensor& rows, int64_t count, int64_t start, int64_t threads) {
  check_tensor(rows, 2, ScalarType::Float, "rows");
  const int64_t total = rows.size(0);
  STD_TORCH_CHECK(count >= 1 && count <= total && start >= 0 && start < total && total < INT32_MAX, "count or start is out of range");
  Tensor chosen = torch::stable::new_empty(rows, {count}, ScalarType::Long);
  k_center::pick({rows.const_data_ptr<float>(), total, rows.size(1)}, false, count, start, static_cast<int>(threads),
                 chosen.mutable_data_ptr<int64_t>());
  return chosen;
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) {
  m.def("k_center(Tensor rows, int count, int start, int threads) -> Tensor");
  m.def("k_center_plain(Tensor rows, int count, int start, int threads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) {
  m.impl("k_center", TORCH_BOX(&mm3dad::k_center_op));
  m.impl("k_center_plain", TORCH_BOX(&mm3dad::k_center_plain_op));
}
