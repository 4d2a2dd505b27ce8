// Voting convolution of sparse cells: the cells in reach of votes, their sums, and the gradient of the weights.
//
// A cell is one number whose order is the lexicographic order of cells (mm3dad/ops/cells.py): an offset of cells is a difference of
// numbers, and the cells of a column along z that lie side by side have consecutive ones. So cells and targets, both ascending, are walked
// together once for each of the k * k columns of the kernel, without a table of pairs. Each target adds up its own votes, column by column:
// the same bits for any number of threads.

#include "common.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace mm3dad {
namespace sparse_vote_ {

constexpr int64_t kAxis = 21;      // bits of a coordinate
constexpr int64_t kTile = 8;       // channels that are added up in registers
constexpr int64_t kBlock = 1024;   // targets that a thread takes at a time
constexpr int64_t kPartial = 512;  // votes added in the dtype of the values before they go to a double

#define MM3DAD_INLINE inline __attribute__((always_inline))

std::vector<int64_t> make_shifts(int64_t side) {
  std::vector<int64_t> shifts;
  const int64_t reach = side / 2;
  for (int64_t x = -reach; x <= reach; ++x)
    for (int64_t y = -reach; y <= reach; ++y) shifts.push_back((x << 2 * kAxis) + (y << kAxis) - reach);
  return shifts;
}

// The ascending union of `side` shifted copies of ascending numbers.
std::vector<int64_t> dilate(const int64_t* keys, int64_t count, int64_t side, int64_t step) {
  std::vector<int64_t> found;
  found.reserve(2 * count);
  std::vector<int64_t> at(side, 0);
  const int64_t reach = side / 2;
  constexpr int64_t none = std::numeric_limits<int64_t>::max();
  while (true) {
    int64_t least = none;
    for (int64_t t = 0; t < side; ++t)
      if (at[t] < count) least = std::min(least, keys[at[t]] + (t - reach) * step);
    if (least == none) return found;
    found.push_back(least);
    for (int64_t t = 0; t < side; ++t) at[t] += at[t] < count && keys[at[t]] + (t - reach) * step == least;
  }
}

template <typename T>
MM3DAD_INLINE void add_products(const T* values, int64_t count, const T* weight, int64_t width, T* sum) {
  for (int64_t first = 0; first < width; first += kTile) {
    T part[kTile];
    for (int64_t t = 0; t < kTile; ++t) part[t] = sum[first + t];
    for (int64_t i = 0; i < count; ++i) {
      const T* row = weight + i * width + first;
#pragma omp simd
      for (int64_t t = 0; t < kTile; ++t) part[t] += values[i] * row[t];
    }
    for (int64_t t = 0; t < kTile; ++t) sum[first + t] = part[t];
  }
}

// One call's inputs. `keys` end in a number above all others; a row of `kernel` and `bias` is padded with zeros to `width`.
template <typename T>
struct Job {
  const int64_t* keys;
  int64_t total;
  const T* values;
  int64_t channels;
  const T* kernel;  // (k * k, k, channels, width)
  const T* bias;
  int64_t width;
  const int64_t* targets;
  const int64_t* shifts;
  int64_t side;
  int64_t out;
  T* to;
};

template <typename T>
MM3DAD_INLINE void vote(const Job<T>& job, int64_t first, int64_t last, int64_t* cursor, T* sum) {
  const int64_t columns = job.side * job.side, depth = job.channels * job.width;
  for (int64_t c = 0; c < columns; ++c)
    cursor[c] = std::lower_bound(job.keys, job.keys + job.total, job.targets[first] + job.shifts[c]) - job.keys;
  for (int64_t j = first; j < last; ++j) {
    std::copy(job.bias, job.bias + job.width, sum);
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t low = job.targets[j] + job.shifts[c];
      int64_t at = cursor[c];
      while (job.keys[at] < low) ++at;
      cursor[c] = at;
      while (job.keys[at] < low + job.side) {
        const int64_t begin = at, deep = job.keys[at] - low;
        do ++at;
        while (job.keys[at] == job.keys[at - 1] + 1 && job.keys[at] < low + job.side);
        add_products(job.values + begin * job.channels, (at - begin) * job.channels, job.kernel + (c * job.side + deep) * depth, job.width, sum);
      }
    }
    std::copy(sum, sum + job.out, job.to + j * job.out);
  }
}

// target_clones does not go with templates, so the versions are named.
MM3DAD_CLONES void vote_block(const Job<float>& job, int64_t first, int64_t last, int64_t* cursor, float* sum) {
  vote(job, first, last, cursor, sum);
}
MM3DAD_CLONES void vote_block(const Job<double>& job, int64_t first, int64_t last, int64_t* cursor, double* sum) {
  vote(job, first, last, cursor, sum);
}

// Rows of `width` numbers, each copied into one of `padded`.
template <typename T>
std::vector<T> pad_rows(const T* rows, int64_t count, int64_t width, int64_t padded) {
  std::vector<T> found(count * padded, T(0));
  for (int64_t i = 0; i < count; ++i) std::copy(rows + i * width, rows + (i + 1) * width, found.begin() + i * padded);
  return found;
}

std::vector<int64_t> close_keys(const Tensor& keys) {
  const int64_t* from = keys.const_data_ptr<int64_t>();
  std::vector<int64_t> found(from, from + keys.numel());
  found.push_back(std::numeric_limits<int64_t>::max());
  return found;
}

template <typename T>
Tensor sparse_vote(const Tensor& keys, const Tensor& values, const Tensor& kernel, const Tensor& bias, const Tensor& targets, int64_t threads) {
  const int64_t side = kernel.size(0), channels = kernel.size(3), out = kernel.size(4), count = targets.numel();
  const int64_t width = (out + kTile - 1) / kTile * kTile;
  const std::vector<int64_t> sources = close_keys(keys), shifts = make_shifts(side);
  const std::vector<T> weights = pad_rows(kernel.const_data_ptr<T>(), side * side * side * channels, out, width);
  const std::vector<T> start = pad_rows(bias.const_data_ptr<T>(), 1, out, width);
  Tensor result = torch::stable::new_empty(values, {count, out});
  const Job<T> job{sources.data(), keys.numel(), values.const_data_ptr<T>(), channels, weights.data(), start.data(), width,
                   targets.const_data_ptr<int64_t>(), shifts.data(), side, out, fresh_data<T>(result)};
#pragma omp parallel num_threads(threads)
  {
    std::vector<int64_t> cursor(side * side);
    std::vector<T> sum(width);
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < count; first += kBlock)
      vote_block(job, first, std::min(first + kBlock, count), cursor.data(), sum.data());
  }
  return result;
}

template <typename T>
MM3DAD_INLINE void add_outer(const T* left, int64_t rows, const T* right, int64_t columns, T* sum) {
  for (int64_t i = 0; i < rows; ++i) {
    const T factor = left[i];
#pragma omp simd
    for (int64_t t = 0; t < columns; ++t) sum[i * columns + t] += factor * right[t];
  }
}
MM3DAD_CLONES void add_votes(const float* left, int64_t rows, const float* right, int64_t columns, float* sum) {
  add_outer(left, rows, right, columns, sum);
}
MM3DAD_CLONES void add_votes(const double* left, int64_t rows, const double* right, int64_t columns, double* sum) {
  add_outer(left, rows, right, columns, sum);
}

template <typename T>
Tensor sparse_vote_weight(const Tensor& keys, const Tensor& values, const Tensor& targets, const Tensor& grad, int64_t side, int64_t threads) {
  const int64_t channels = values.size(1), out = grad.size(1), count = targets.numel(), depth = channels * out;
  const std::vector<int64_t> sources = close_keys(keys), shifts = make_shifts(side);
  const int64_t* to = targets.const_data_ptr<int64_t>();
  const T *from = values.const_data_ptr<T>(), *given = grad.const_data_ptr<T>();
  Tensor result = torch::stable::new_empty(values, {side, side, side, channels, out});
  T* kernel = result.mutable_data_ptr<T>();
#pragma omp parallel num_threads(threads)
  {
    std::vector<T> part(side * depth);
    std::vector<double> sum(side * depth);
#pragma omp for schedule(dynamic)
    for (int64_t c = 0; c < side * side; ++c) {
      std::fill(part.begin(), part.end(), T(0));
      std::fill(sum.begin(), sum.end(), 0.0);
      int64_t at = 0, votes = 0;
      const auto flush = [&] {
        for (int64_t i = 0; i < side * depth; ++i) sum[i] += part[i];
        std::fill(part.begin(), part.end(), T(0));
        votes = 0;
      };
      for (int64_t j = 0; j < count; ++j) {
        const int64_t low = to[j] + shifts[c];
        while (sources[at] < low) ++at;
        for (int64_t i = at; sources[i] < low + side; ++i, ++votes)
          add_votes(from + i * channels, channels, given + j * out, out, part.data() + (sources[i] - low) * depth);
        if (votes >= kPartial) flush();
      }
      flush();
      for (int64_t i = 0; i < side * depth; ++i) kernel[c * side * depth + i] = static_cast<T>(sum[i]);
    }
  }
  return result;
}

void check_keys(const Tensor& keys, const char* name) {
  check_tensor(keys, 1, ScalarType::Long, name);
  const int64_t* number = keys.const_data_ptr<int64_t>();
  for (int64_t i = 1; i < keys.numel(); ++i) STD_TORCH_CHECK(number[i - 1] < number[i], name, " must ascend");
}

void check_rows(const Tensor& rows, const Tensor& keys, ScalarType type, const char* name) {
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "values must be float32 or float64");
  check_tensor(rows, 2, type, name);
  STD_TORCH_CHECK(rows.size(0) == keys.numel(), name, " must have a row for each cell");
}

void check_side(int64_t side) { STD_TORCH_CHECK(side >= 1 && side % 2 == 1, "the side of the kernel must be odd, got ", side); }

}  // namespace sparse_vote_

Tensor vote_cells(const Tensor& keys, int64_t side) {
  sparse_vote_::check_keys(keys, "keys");
  sparse_vote_::check_side(side);
  const int64_t* from = keys.const_data_ptr<int64_t>();
  // A box is three strokes, one along each axis.
  std::vector<int64_t> found = sparse_vote_::dilate(from, keys.numel(), side, 1);
  for (int64_t axis = 1; axis < 3; ++axis)
    found = sparse_vote_::dilate(found.data(), static_cast<int64_t>(found.size()), side, int64_t{1} << axis * sparse_vote_::kAxis);
  Tensor result = torch::stable::new_empty(keys, {static_cast<int64_t>(found.size())});
  std::copy(found.begin(), found.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

Tensor sparse_vote(const Tensor& keys, const Tensor& values, const Tensor& kernel, const Tensor& bias, const Tensor& targets, int64_t threads) {
  const ScalarType type = values.scalar_type();
  sparse_vote_::check_keys(keys, "keys");
  sparse_vote_::check_keys(targets, "targets");
  sparse_vote_::check_rows(values, keys, type, "values");
  check_tensor(kernel, 5, type, "kernel");
  check_tensor(bias, 1, type, "bias");
  sparse_vote_::check_side(kernel.size(0));
  STD_TORCH_CHECK(kernel.size(1) == kernel.size(0) && kernel.size(2) == kernel.size(0), "kernel must be a cube");
  STD_TORCH_CHECK(kernel.size(3) == values.size(1) && kernel.size(4) == bias.size(0), "kernel, values and bias must fit");
  return type == ScalarType::Float ? sparse_vote_::sparse_vote<float>(keys, values, kernel, bias, targets, threads)
                                   : sparse_vote_::sparse_vote<double>(keys, values, kernel, bias, targets, threads);
}

Tensor sparse_vote_weight(const Tensor& keys, const Tensor& values, const Tensor& targets, const Tensor& grad, int64_t side, int64_t threads) {
  const ScalarType type = values.scalar_type();
  sparse_vote_::check_keys(keys, "keys");
  sparse_vote_::check_keys(targets, "targets");
  sparse_vote_::check_rows(values, keys, type, "values");
  sparse_vote_::check_rows(grad, targets, type, "grad");
  sparse_vote_::check_side(side);
  return type == ScalarType::Float ? sparse_vote_::sparse_vote_weight<float>(keys, values, targets, grad, side, threads)
                                   : sparse_vote_::sparse_vote_weight<double>(keys, values, targets, grad, side, threads);
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) {
  m.def("vote_cells(Tensor keys, int side) -> Tensor");
  m.def("sparse_vote(Tensor keys, Tensor values, Tensor kernel, Tensor bias, Tensor targets, int threads) -> Tensor");
  m.def("sparse_vote_weight(Tensor keys, Tensor values, Tensor targets, Tensor grad, int side, int threads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) {
  m.impl("vote_cells", TORCH_BOX(&mm3dad::vote_cells));
  m.impl("sparse_vote", TORCH_BOX(&mm3dad::sparse_vote));
  m.impl("sparse_vote_weight", TORCH_BOX(&mm3dad::sparse_vote_weight));
}
