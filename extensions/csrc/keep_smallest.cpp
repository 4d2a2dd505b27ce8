// The smallest entries of each row, kept while blocks of a product pass by.
//
// Few entries are among the smallest so far: 64 at a time are compared with the largest one kept, and only where one of them is smaller
// is a row's heap touched.

#include "common.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace mm3dad {
namespace keep_smallest_ {

constexpr int64_t kLanes = 16, kChunk = 64;

template <typename T>
struct Entry {
  T value;
  int64_t index;
};

// Largest value first; of equal ones the highest index, so that the lowest stays.
template <typename T>
inline bool is_above(const Entry<T>& a, const Entry<T>& b) {
  return a.value > b.value || (a.value == b.value && a.index > b.index);
}

template <typename T>
inline __attribute__((always_inline)) void replace_top(Entry<T>* heap, int64_t size, Entry<T> entry) {
  int64_t at = 0;
  for (int64_t child = 1; child < size; child = 2 * at + 1) {
    if (child + 1 < size && is_above(heap[child + 1], heap[child])) ++child;
    if (!is_above(heap[child], entry)) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = entry;
}

template <typename T>
inline __attribute__((always_inline)) bool holds_smaller(const T* row, const T* squares, T limit) {
  T least[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) least[lane] = row[lane] + squares[lane];
  for (int64_t first = kLanes; first < kChunk; first += kLanes)
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const T value = row[first + lane] + squares[first + lane];
      least[lane] = value < least[lane] ? value : least[lane];
    }
  int found = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) found |= least[lane] < limit;
  return found != 0;
}

template <typename T>
inline __attribute__((always_inline)) void scan_row(const T* row, const T* squares, int64_t width, int64_t offset, Entry<T>* heap,
                                                    int64_t keep) {
  for (int64_t first = 0; first < width; first += kChunk) {
    const int64_t last = std::min(first + kChunk, width);
    if (last - first == kChunk && !holds_smaller(row + first, squares + first, heap[0].value)) continue;
    for (int64_t q = first; q < last; ++q) {
      const T value = row[q] + squares[q];
      if (value < heap[0].value) replace_top(heap, keep, Entry<T>{value, offset + q});
    }
  }
}

// target_clones does not go with templates, so the versions are named.
MM3DAD_CLONES void scan(const float* row, const float* squares, int64_t width, int64_t offset, Entry<float>* heap, int64_t keep) {
  scan_row(row, squares, width, offset, heap, keep);
}
MM3DAD_CLONES void scan(const double* row, const double* squares, int64_t width, int64_t offset, Entry<double>* heap, int64_t keep) {
  scan_row(row, squares, width, offset, heap, keep);
}

template <typename T>
void update(const Tensor& values, const Tensor& index, const Tensor& product, const Tensor& squares, int64_t offset, Tensor& kept,
            Tensor& places, int64_t threads) {
  const int64_t rows = values.size(0), keep = values.size(1), width = product.size(1);
  const T *old = values.const_data_ptr<T>(), *from = product.const_data_ptr<T>(), *norm = squares.const_data_ptr<T>();
  const int64_t* old_index = index.const_data_ptr<int64_t>();
  T* to = kept.mutable_data_ptr<T>();
  int64_t* to_index = places.mutable_data_ptr<int64_t>();
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<Entry<T>> heap(keep);
    for (int64_t i = 0; i < keep; ++i) heap[i] = {old[row * keep + i], old_index[row * keep + i]};
    std::make_heap(heap.begin(), heap.end(), [](const Entry<T>& a, const Entry<T>& b) { return is_above(b, a); });
    scan(from + row * width, norm, width, offset, heap.data(), keep);
    for (int64_t i = 0; i < keep; ++i) to[row * keep + i] = heap[i].value, to_index[row * keep + i] = heap[i].index;
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
