// Where sleeping workers wake: what their affinity is while they sleep and after.
#include "cpu/placement.h"

#include <vector>

#include "support.h"

namespace metal_sdpa::cpu {

TEST_CASE("placement: processors that are not known are never taken") {
  ProcessorSet taken;
  CHECK(taken.add(-1));
  CHECK(taken.add(-1));
  CHECK(taken.add(1 << 20));
  CHECK(taken.add(1 << 20));
}

#if defined(__linux__)

namespace {

std::vector<int> allowed() {
  cpu_set_t set;
  REQUIRE(sched_getaffinity(0, sizeof(set), &set) == 0);
  std::vector<int> processors;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &set)) processors.push_back(i);
  }
  return processors;
}

/// The calling thread may run on these only; the destructor gives back what it had.
class Only {
 public:
  explicit Only(const std::vector<int>& processors) {
    REQUIRE(sched_getaffinity(0, sizeof(before_), &before_) == 0);
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int processor : processors) CPU_SET(processor, &set);
    REQUIRE(sched_setaffinity(0, sizeof(set), &set) == 0);
  }
  ~Only() { sched_setaffinity(0, sizeof(before_), &before_); }
  Only(const Only&) = delete;
  Only& operator=(const Only&) = delete;

 private:
  cpu_set_t before_;
};

}  // namespace

TEST_CASE("placement: a worker with one processor stays there") {
  const std::vector<int> one{allowed().front()};
  const Only only(one);
  CHECK(current_processor() == one[0]);
  WorkerPlace place;
  place.note();
  CHECK(place.processor() == one[0]);
  ProcessorSet taken;
  CHECK(taken.add(one[0]));
  CHECK_FALSE(taken.add(one[0]));
  place.keep_off(taken, false);
  CHECK(allowed() == one);
  place.settle();
  CHECK(allowed() == one);
}

TEST_CASE("placement: a worker is kept off what is taken until it settles") {
  const std::vector<int> all = allowed();
  if (all.size() < 2) {
    MESSAGE("one processor: nothing to keep off");
    return;
  }
  const std::vector<int> two{all[0], all[1]};
  const Only only(two);
  WorkerPlace place;
  {
    const Only first({two[0]});
    place.note();
  }
  REQUIRE(place.processor() == two[0]);
  ProcessorSet taken;
  taken.add(two[0]);

  place.keep_off(taken, false);
  CHECK(allowed() == std::vector<int>{two[1]});
  place.keep_off(taken, false);  // it slept on: what it had is not forgotten
  place.forget();
  CHECK(place.processor() == -1);
  place.settle();
  CHECK(allowed() == two);

  {
    const Only first({two[0]});
    place.note();
  }
  taken.add(two[1]);
  place.keep_off(taken, true);  // where it sleeps is its own
  CHECK(allowed() == std::vector<int>{two[0]});
  place.settle();
  CHECK(allowed() == two);

  place.keep_off(taken, false);  // everything is taken: as before
  CHECK(allowed() == two);
}

#endif

}  // namespace metal_sdpa::cpu
