// Operations that several threads do together.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace {

inline void pause_briefly(int round) {
  if (round < 4000)
    _mm_pause();
  else
    std::this_thread::yield();
}

// One operation of a pass, done piece by piece by whoever is free. It is over when every piece is done,
// not when every thread has been there: a thread that the system has put aside holds nobody up.
struct Work {
  std::atomic<int> claimed{0};
  std::atomic<int> finished{0};

  template <class Do>
  void take_part(int count, int threads, const Do& run) {
    const int piece = std::max(1, count / (4 * threads));
    for (int begin; (begin = claimed.fetch_add(piece, std::memory_order_relaxed)) < count;) {
      const int end = std::min(begin + piece, count);
      run(begin, end);
      finished.fetch_add(end - begin, std::memory_order_acq_rel);
    }
    for (int round = 0; finished.load(std::memory_order_acquire) < count; ++round)
      pause_briefly(round);
  }
};

// Threads that sleep between passes. The caller's thread is the first of them.
class Pool {
 public:
  using Job = std::function<void()>;

  explicit Pool(int size) : size_(size) {
    for (int index = 1; index < size; ++index) threads_.emplace_back([this] { serve(); });
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  int size() const { return size_; }

  // Run the job on every thread that comes in time; it must end when its work is done.
  void run(std::shared_ptr<Job> job) {
    if (size_ > 1) {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = job;
      ++generation_;
    }
    wake_.notify_all();
    (*job)();
    std::lock_guard<std::mutex> lock(mutex_);
    job_.reset();
  }

 private:
  void serve() {
    for (uint64_t seen = 0;;) {
      std::shared_ptr<Job> job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || (job_ && generation_ != seen); });
        if (stopping_) return;
        seen = generation_;
        job = job_;
      }
      (*job)();
    }
  }

  const int size_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::shared_ptr<Job> job_;
  uint64_t generation_ = 0;
  bool stopping_ = false;
};

}  // namespace
