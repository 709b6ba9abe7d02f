// A plan in words.
#include "metal_sdpa/plan.h"

#include "core/text.h"

namespace metal_sdpa {
namespace {

std::string grid_text(const GridSize& grid) {
  return text_of("[", grid.x, ", ", grid.y, ", ", grid.z, "]");
}

}  // namespace

std::string Plan::describe() const {
  if (steps.empty()) return text_of("nothing to run: ", reason, "\n");
  std::string text;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const PlanStep& step = steps[i];
    text += text_of(i + 1, ". ", step.kernel, ": ", grid_text(step.threadgroups),
                    " threadgroups of ", grid_text(step.threadgroup_size), " threads\n");
  }
  std::uint64_t scratch = 0;
  for (const std::uint64_t bytes : scratch_bytes) scratch += bytes;
  text += text_of("spans of ", span_len, " keys, ", scratch, " bytes of scratch\n");
  if (!reason.empty()) text += reason + "\n";
  return text;
}

}  // namespace metal_sdpa
