// The smallest entries of each row, kept while blocks of a product pass by.
//
// Few entries are among the smallest so far: 64 at a time are compared with the largest one kept, and only where one of them is smaller
// are they looked at one by one.

#include "common.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

namespace mm3dad {
namespace keep_smallest_ {

constexpr int64_t kLanes = 16, kChunk = 64, kFirst = 1024;

// Integers in the order of the numbers, and back.
inline int32_t key_of(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits ^ ((bits >> 31) & std::numeric_limits<int32_t>::max());
}
inline int64_t key_of(double value) {
  int64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits ^ ((bits >> 63) & std::numeric_limits<int64_t>::max());
}
template <typename T, typename Key>
inline __attribute__((always_inline)) T value_of(Key key) {
  key ^= (key >> (8 * sizeof(Key) - 1)) & std::numeric_limits<Key>::max();
  T value;
  std::memcpy(&value, &key, sizeof value);
  return value;
}

// The least key, by and by, up to which there are at least `least` and at most `most` of some keys (more where equal ones lie on it), and how
// many those are. Counting what lies below takes a few vectors and no branch, where a partition would guess wrong at every other entry.
// Halving the values gets there soon, as they lie evenly; halving the keys, every other time, is sure to end.
template <typename T, typename Key>
inline __attribute__((always_inline)) Key find_cut(const Key* keys, int64_t count, int64_t least, int64_t most, int64_t& below) {
  Key low = std::numeric_limits<Key>::max(), high = std::numeric_limits<Key>::min();
#pragma omp simd reduction(min : low) reduction(max : high)
  for (int64_t i = 0; i < count; ++i) {
    low = keys[i] < low ? keys[i] : low;
    high = keys[i] > high ? keys[i] : high;
  }
  below = count;
  for (bool by_value = true; low < high && below > most; by_value = !by_value) {
    Key middle = (low & high) + ((low ^ high) >> 1);
    if (by_value) middle = std::min(std::max(key_of(value_of<T>(low) / 2 + value_of<T>(high) / 2), low), high - 1);
    Key reached = 0;
#pragma omp simd reduction(+ : reached)
    for (int64_t i = 0; i < count; ++i) reached += keys[i] <= middle ? 1 : 0;
    if (reached >= least) {
      high = middle;
      below = reached;
    } else {
      low = middle + 1;
    }
  }
  return high;
}

template <typename T>
struct Kept {
  using Key = decltype(key_of(T()));
  std::vector<T> values;
  std::vector<int64_t> index;
  std::vector<Key> keys;
  int64_t keep, count = 0;
  T limit = std::numeric_limits<T>::infinity();  // nothing beyond it can be among the `keep` smallest

  explicit Kept(int64_t wanted) : values(6 * wanted + 2 * kChunk), index(values.size()), keys(values.size() + kFirst), keep(wanted) {}

  int64_t room() const { return static_cast<int64_t>(values.size()); }
  int64_t enough() const { return keep + keep / 2; }

  // Takes in what was kept so far; infinite ones stand for none.
  void open(const T* old, const int64_t* old_index) {
    count = 0;
    limit = -std::numeric_limits<T>::infinity();
    for (int64_t i = 0; i < keep; ++i) {
      values[count] = old[i];
      index[count] = old_index[i];
      limit = std::max(limit, old[i]);
      count += old[i] < std::numeric_limits<T>::infinity();
    }
  }
  void close(T* to, int64_t* to_index) {
    std::fill(values.begin() + count, values.begin() + keep, std::numeric_limits<T>::infinity());
    std::fill(index.begin() + count, index.begin() + keep, 0);
    std::copy(values.begin(), values.begin() + keep, to);
    std::copy(index.begin(), index.begin() + keep, to_index);
  }

  // Lowers the limit by what the first entries of a row allow, before any is taken in.
  inline __attribute__((always_inline)) void narrow(const T* row, const T* squares, int64_t width) {
    if (width <= 2 * enough()) return;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) keys[i] = key_of(row[i] + squares[i]);
    int64_t below;
    limit = std::min(limit, value_of<T>(find_cut<T>(keys.data(), width, keep, enough(), below)));
  }

  // Leaves the smallest entries, at least `keep` and at most `most` of them.
  inline __attribute__((always_inline)) void cut(int64_t most) {
    if (count <= most) return;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) keys[i] = key_of(values[i]);
    int64_t below;
    const Key last = find_cut<T>(keys.data(), count, keep, most, below);
    int64_t spare = std::max<int64_t>(0, below - most), to = 0;  // what is too much equals the last
    for (int64_t i = 0; i < count; ++i) {
      const bool dropped = keys[i] == last && spare > 0;
      spare -= dropped;
      values[to] = values[i];
      index[to] = index[i];
      to += keys[i] <= last && !dropped;
    }
    count = to;
    limit = std::min(limit, value_of<T>(last));
  }
};

template <typename T>
inline __attribute__((always_inline)) bool holds_any(const T* row, const T* squares, T limit) {
  T least[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) least[lane] = row[lane] + squares[lane];
  for (int64_t first = kLanes; first < kChunk; first += kLanes)
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const T value = row[first + lane] + squares[first + lane];
      least[lane] = value < least[lane] ? value : least[lane];
    }
  int found = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) found |= least[lane] <= limit;
  return found != 0;
}

// Whatever is within the limit is put behind the kept ones, without a branch; only when the room is used up are the smallest chosen anew.
template <typename T>
inline __attribute__((always_inline)) void scan_row(const T* row, const T* squares, int64_t width, int64_t offset, Kept<T>& kept) {
  if (kept.count < kept.keep) kept.narrow(row, squares, std::min(width, kFirst));
  for (int64_t first = 0; first < width; first += kChunk) {
    const int64_t last = std::min(first + kChunk, width);
    if (last - first == kChunk && !holds_any(row + first, squares + first, kept.limit)) continue;
    if (kept.count + kChunk > kept.room()) kept.cut(kept.enough());
    T* values = kept.values.data();
    int64_t* index = kept.index.data();
    int64_t count = kept.count;
    const T limit = kept.limit;
    for (int64_t q = first; q < last; ++q) {
      const T value = row[q] + squares[q];
      values[count] = value;
      index[count] = offset + q;
      count += value <= limit && value < std::numeric_limits<T>::infinity();
    }
    kept.count = count;
  }
  kept.cut(kept.keep);
}

// target_clones does not go with templates, so the versions are named.
MM3DAD_CLONES void scan(const float* row, const float* squares, int64_t width, int64_t offset, Kept<float>& kept) {
  scan_row(row, squares, width, offset, kept);
}
MM3DAD_CLONES void scan(const double* row, const double* squares, int64_t width, int64_t offset, Kept<double>& kept) {
  scan_row(row, squares, width, offset, kept);
}

template <typename T>
void update(const Tensor& values, const Tensor& index, const Tensor& product, const Tensor& squares, int64_t offset, Tensor& kept,
            Tensor& places, int64_t threads) {
  const int64_t rows = values.size(0), keep = values.size(1), width = product.size(1);
  const T *old = values.const_data_ptr<T>(), *from = product.const_data_ptr<T>(), *norm = squares.const_data_ptr<T>();
  const int64_t* old_index = index.const_data_ptr<int64_t>();
  T* to = kept.mutable_data_ptr<T>();
  int64_t* to_index = places.mutable_data_ptr<int64_t>();
#pragma omp parallel num_threads(threads)
  {
    Kept<T> own(keep);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
      own.open(old + row * keep, old_index + row * keep);
      scan(from + row * width, norm, width, offset, own);
      own.close(to + row * keep, to_index + row * keep);
    }
  }
}

}  // namespace keep_smallest_

std::tuple<Tensor, Tensor> keep_smallest(const Tensor& values, const Tensor& index, const Tensor& product, const Tensor& squares,
                                         int64_t offset, int64_t threads) {
  const ScalarType type = product.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "product must be float32 or float64");
  check_tensor(product, 2, type, "product");
  check_tensor(squares, 1, type, "squares");
  check_tensor(values, 2, type, "values");
  check_tensor(index, 2, ScalarType::Long, "index");
  STD_TORCH_CHECK(squares.size(0) == product.size(1), "squares must have one entry per column of product");
  STD_TORCH_CHECK(values.size(0) == product.size(0) && index.size(0) == product.size(0), "values, index and product must have the same rows");
  STD_TORCH_CHECK(values.size(1) == index.size(1) && index.size(1) >= 1, "values and index must have the same columns");
  Tensor kept = torch::stable::new_empty(values, {values.size(0), values.size(1)});
  Tensor places = torch::stable::new_empty(index, {index.size(0), index.size(1)});
  if (type == ScalarType::Float)
    keep_smallest_::update<float>(values, index, product, squares, offset, kept, places, threads);
  else
    keep_smallest_::update<double>(values, index, product, squares, offset, kept, places, threads);
  return {kept, places};
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) {
  m.def("keep_smallest(Tensor values, Tensor index, Tensor product, Tensor squares, int offset, int threads) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) { m.impl("keep_smallest", TORCH_BOX(&mm3dad::keep_smallest)); }
