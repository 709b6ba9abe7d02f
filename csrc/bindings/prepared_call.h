// A call whose arrays are described, checked and planned once, for those of many layers.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "metal_sdpa/prepared.h"
#include "ready_call.h"

namespace metal_sdpa::python {

class PreparedCall {
 public:
  /// `call` as for the plain call; its q, k, v and out say shapes and strides and are not kept.
  /// `kv_capacity`: an int, or null for as many keys as the arrays reach.
  PreparedCall(const SdpaCall& call, PyObject* kv_capacity);

  /// What the layers differ by.
  struct Arrays {
    nb::handle q, k, v, out, mask, sinks, alibi_slopes;
  };

  nb::object run(const Arrays& arrays, const Buffer& scratch) const;
  void encode(CommandEncoder& encoder, const KernelRegistry& registry, const SdpaOperands& operands,
              const Buffer& scratch) const;
  void update(const nb::kwargs& changes);

  const char* name() const { return name_; }
  std::int64_t kv_capacity() const { return inputs_.problem.kv_capacity; }
  SdpaProblem problem() const { return core_->problem(); }
  std::string plan() const { return core_->plan().describe(); }
  std::uint64_t scratch_bytes() const { return core_->scratch_bytes(); }

 private:
  SdpaCall call_with(const Arrays& arrays) const;
  void import_arrays(const SdpaCall& call, SdpaInputs& inputs) const;
  void require_prepared_out(const SdpaCall& call, const SdpaInputs& inputs, const Array& out) const;
  void refuse_hidden_overlap_of_run(const SdpaCall& call, const Device& device,
                                    const SdpaInputs& inputs, const Outputs& outputs) const;
  Buffer import_new_table(nb::handle value, Array& table) const;

  const char* name_;
  KeyRows keys_;
  /// As they were described; memory is only that of the block table. Layouts are those of the
  /// arrays, without the distance to their first element.
  SdpaInputs inputs_;
  nb::object mask_, sinks_, alibi_slopes_;  ///< for runs that bring none
  nb::object device_object_;                ///< where the call named one
  Buffer table_;                            ///< as the device sees it
  /// Laid out like the arrays, for encode(), where a run copies any of them.
  std::optional<SdpaProblem> recorded_;
  std::unique_ptr<PreparedSdpa> core_;
};

}  // namespace metal_sdpa::python
