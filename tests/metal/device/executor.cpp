// One thread runs all command buffers: in commit order within a queue, queues in shuffled order.
#include "executor.hpp"

#include <pthread.h>

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "command.hpp"

namespace software_metal {

void register_metal_classes(Registry& registry) {
  register_device_classes(registry);
  register_library_classes(registry);
  register_command_classes(registry);
  register_encoder_classes(registry);
}

namespace {

class Executor {
 public:
  void submit(CommandBuffer* command_buffer) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!thread_) start();
    waiting_[command_buffer->queue.get()].emplace_back(command_buffer);
    ++unfinished_;
    changed_.notify_all();
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return unfinished_ == 0; });
  }

  void shut_down() {
    std::unique_ptr<std::thread> thread;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
      changed_.notify_all();
      thread = std::move(thread_);
    }
    if (thread) thread->join();
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = false;
  }

 private:
  using Work = Ref<CommandBuffer>;

  void start() {
    static std::once_flag once;
    std::call_once(once, [] { pthread_atfork(nullptr, nullptr, &forget_after_fork); });
    thread_ = std::make_unique<std::thread>([this] { loop(); });
  }

  void loop() {
    for (;;) {
      std::optional<Work> work = next();
      if (!work) return;
      auto* pool = new AutoreleasePool;
      (*work)->execute();
      work.reset();
      pool->release();
      std::lock_guard<std::mutex> lock(mutex_);
      --unfinished_;
      changed_.notify_all();
    }
  }

  // The oldest command buffer of a queue picked at random; nothing when the thread must end.
  std::optional<Work> next() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return !waiting_.empty() || stopping_; });
    if (waiting_.empty()) return std::nullopt;
    auto queue = waiting_.begin();
    if (waiting_.size() > 1) {
      std::advance(queue, next_random().below(static_cast<unsigned>(waiting_.size())));
    }
    Work work = std::move(queue->second.front());
    queue->second.pop_front();
    if (queue->second.empty()) waiting_.erase(queue);
    return work;
  }

  // A child process has no executor thread; what was in flight never finishes there.
  static void forget_after_fork();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<CommandQueue*, std::deque<Work>> waiting_;
  unsigned long unfinished_ = 0;
  bool stopping_ = false;
  std::unique_ptr<std::thread> thread_;
};

Executor* the_executor = new Executor;

// The old executor is left as it was at the fork, its thread's handle included: joining it would
// wait forever.
void Executor::forget_after_fork() { the_executor = new Executor; }

}  // namespace

void submit_to_executor(CommandBuffer* command_buffer) { the_executor->submit(command_buffer); }
void wait_for_executor() { the_executor->wait(); }
void shut_down_executor() { the_executor->shut_down(); }

}  // namespace software_metal
