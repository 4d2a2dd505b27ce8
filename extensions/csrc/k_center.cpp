// flags: -ffp-contract=off
// Exact greedy k-centre (farthest-first traversal): a plain form and one that skips what the triangle inequality rules out.
//
// Both return the picks of the float64 algorithm: a float32 distance, whose relative error is bounded, only ever rules rows out;
// whatever it cannot rule out is measured again in float64. Ties go to the lowest row, no row comes twice.

#include "common.h"

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

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kSingle = std::numeric_limits<float>::epsilon();
// Distances are compared unsquared in the triangle inequality; this covers the rounding of both sides.
constexpr double kSlack = 1e-9;
constexpr int kHead = 32;            // coordinates of a head, the last of which is the length of what the others leave
constexpr int64_t kSampled = 1024;   // rows that tell whether skipping pays
constexpr int kTurns = 4;            // of the iteration that finds the directions of the heads
constexpr int64_t kFirstCheck = 8;   // picks before the first such look; the next ones follow at half as many again
constexpr double kWorthwhile = 0.5;  // share of skipped rows from which the lazy form is taken
constexpr size_t kParallel = 24576;  // members from which a step is shared among threads: below, waiting for them costs more
constexpr int kLanes = 16;           // float32 numbers worked on side by side
constexpr int kStage = 8;            // coordinates between two looks at whether any of them is still open
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

MM3DAD_CLONES Best plain_block(const Rows& rows, int64_t first, int64_t last, int64_t center, double* distance, int32_t* owner,
                               int32_t label) {
  Best best;
  const float* z = rows.row(center);
  for (int64_t i = first; i < last; ++i) {
    const double d = rows.below(i, z, distance[i]);
    if (d < distance[i]) {
      distance[i] = d;
      owner[i] = label;
    }
    if (i == center) {
      distance[i] = -kInfinity;
      owner[i] = label;
    }
    best.offer(distance[i], i);
  }
  return best;
}

// One step of the plain algorithm: bring all distances up to date with `center`, return the next pick.
int64_t plain_step(const Rows& rows, int64_t center, double* distance, int32_t* owner, int32_t label, int threads) {
  Best best;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int t = 0; t < threads; ++t) {
    const Best mine = plain_block(rows, rows.count * t / threads, rows.count * (t + 1) / threads, center, distance, owner, label);
#pragma omp critical
    best.offer(mine.squared, mine.index);
  }
  return best.index;
}

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
    return (std::sqrt(static_cast<double>(squared) * (1 - 4 * kHead * kSingle)) - slack) * (1 - kSlack);
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

Heads make_heads(const Rows& rows, const Frame& frame, int threads) {
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
    for (int k = 0; k < kLanes; ++k)
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

// Hand the members that are nearer to `pick` than to their centre over to it. Returns whether there were any.
bool take_members(const Rows& rows, const Heads& heads, int64_t pick, double gap, Cluster& cluster, std::vector<Found>& maybe,
                  std::vector<Member>& taken) {
  maybe.clear();
  const size_t begin = cluster.first / kLanes, every = blocks_of(cluster.members.size());
  size_t end = begin;
  while (end < every && gap < cluster.members[end * kLanes].reach) ++end;
  scan(cluster.heads, begin, end, heads.row(pick), maybe);
  for (const Found& f : maybe) rows.prefetch(cluster.members[f.place].index);
  bool any = false;
  for (const Found& f : maybe) {
    const Member& m = cluster.members[f.place];
    if (m.squared < 0) continue;
    if (m.index != pick) {
      const double squared = distance_below(rows, m.index, rows.row(pick), m.squared);
      if (squared >= m.squared) continue;
      taken.push_back(make_member(squared, m.index));
    }
    cluster.drop(f.place);
    any = true;
  }
  if (any) cluster.tidy(heads);
  return any;
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
      if (cluster.slot < 0) return;
      centers.replace_by_last(cluster.slot);
      clusters[occupied.back()].slot = cluster.slot;
      occupied[cluster.slot] = occupied.back();
      occupied.pop_back();
      cluster = Cluster();
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

  std::vector<Found> near;
  std::vector<int32_t> changed;
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
    near.clear();
    changed.clear();
    taken.clear();
    scan(centers, 0, blocks_of(centers.count), heads.row(next), near);
    size_t work = 0;
    for (const Found& f : near) work += clusters[occupied[f.place]].left;
#pragma omp parallel num_threads(threads) if (work > kParallel)
    {
      std::vector<Member> mine;
      std::vector<int32_t> touched;
      std::vector<Found> maybe;
#pragma omp for schedule(dynamic, 8)
      for (int64_t k = 0; k < static_cast<int64_t>(near.size()); ++k) {
        const int32_t c = occupied[near[k].place];
        if (k + 2 < static_cast<int64_t>(near.size())) clusters[occupied[near[k + 2].place]].prefetch(false);
        if (k + 1 < static_cast<int64_t>(near.size())) clusters[occupied[near[k + 1].place]].prefetch(true);
        if (take_members(rows, heads, next, heads.reached(near[k].squared), clusters[c], maybe, mine)) touched.push_back(c);
      }
#pragma omp critical
      {
        taken.insert(taken.end(), mine.begin(), mine.end());
        changed.insert(changed.end(), touched.begin(), touched.end());
      }
    }
    // The pick was the first of its cluster; it is still there where nothing was in reach, as among duplicates of the centre.
    Cluster& home = clusters[parent];
    if (home.left && home.farthest().index == next) home.drop(home.first);
    announce(parent);
    for (const int32_t c : changed)
      if (c != parent) announce(c);
    open(next, taken);
  }
}

void pick(const Rows& rows, bool lazy, int64_t count, int64_t start, int threads, int64_t* chosen) {
  std::vector<double> distance(rows.count, kInfinity);
  std::vector<int32_t> owner(rows.count, 0);
  std::unique_ptr<const Look> look;
  int64_t next = start, check = kFirstCheck;
  for (int64_t done = 0; done < count; ++done) {
    if (lazy && done == check) {
      check += check / 2;
      if (!look) look.reset(new Look(rows));
      if (look->pruned_share(rows, distance.data(), owner.data(), chosen, done, next) > kWorthwhile) {
        lazy_steps(rows, make_heads(rows, look->frame, threads), distance.data(), owner.data(), chosen, done, count, threads);
        return;
      }
    }
    chosen[done] = next;
    // Before the first look the lazy form is still likely, and few steps are not worth a team of threads.
    const int workers = lazy && done < kFirstCheck ? 1 : threads;
    next = plain_step(rows, next, distance.data(), owner.data(), static_cast<int32_t>(done), workers);
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
