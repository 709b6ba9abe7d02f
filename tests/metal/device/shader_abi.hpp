// What a shader compiled for the host and the device that runs it agree on.
//
// Included by both: by the shim that stands for metal_stdlib (no standard headers there) and by
// the device. kAbiVersion changes with any change here.
#pragma once

namespace msl_host {

constexpr unsigned kAbiVersion = 1;
constexpr unsigned kLanes = 32;
constexpr unsigned kMaxBindings = 31;

struct Uint3 {
  unsigned x, y, z;
};

/// One lane's operands or results of an operation of a simdgroup.
struct Slot {
  alignas(16) unsigned char bytes[64];
};

/// The meeting place of up to 32 lanes. `in` is written before a meeting, `out` by its resolver.
struct Simdgroup {
  Slot in[kLanes];
  Slot out[kLanes];
  unsigned active;  ///< lanes that take part in the meeting being resolved, one bit each
};

/// Values shared by the threads of a threadgroup.
struct Group {
  Uint3 position_in_grid;
  Uint3 threads;             ///< of this threadgroup; fewer at the edge of a nonuniform grid
  Uint3 dispatched_threads;  ///< of a full threadgroup
  Uint3 groups_in_grid;
  Uint3 threads_in_grid;
  unsigned simdgroups;
  void* buffers[kMaxBindings];
  void* threadgroup_memory[kMaxBindings];
};

struct Thread {
  Uint3 position_in_grid;
  Uint3 position_in_threadgroup;
  unsigned index_in_threadgroup;
  unsigned lane;
  unsigned simdgroup_index;
  Simdgroup* simdgroup;
  const Group* group;
};

enum class Meeting : unsigned {
  threadgroup_barrier,
  simdgroup_barrier,
  lanes,   ///< of the active lanes; others may be elsewhere
  matrix,  ///< of all lanes
};

using Resolver = void (*)(Simdgroup&);

/// Where in the source a meeting is called: tells meetings apart, however often they are inlined.
constexpr unsigned site_of(unsigned line, unsigned column) { return (column << 20) | line; }
constexpr unsigned line_of(unsigned site) { return site & 0xfffffu; }

/// Services of the device.
struct Runtime {
  /// Returns when all threads that must have come to the same meeting are there. `resolve`, where
  /// not null, runs once, before the first thread returns.
  void (*meet)(Meeting meeting, const char* name, unsigned site, Resolver resolve);
  /// Memory of a threadgroup array declared in a kernel: the same for all its threads.
  void* (*threadgroup_array)(unsigned id, unsigned bytes);
};

enum class ArgumentKind : unsigned { buffer, threadgroup };

struct Argument {
  const char* name;
  ArgumentKind kind;
  unsigned index;
  unsigned size;      ///< bytes of the type pointed or referred to
  unsigned align;     ///< its alignment
  bool is_reference;  ///< the whole object must be there
  bool is_read_only;
  const bool* enabled;  ///< function constant that decides whether it exists; null: always
};

/// A kernel under its host name.
struct Function {
  const char* name;
  void (*entry)(const Thread&);
  const Argument* arguments;
  unsigned n_arguments;
  unsigned max_threads;                ///< 0 where the kernel states none
  const unsigned* required_constants;  ///< positions in Module::constants that must have a value
  unsigned n_required_constants;
};

enum class ConstantType : unsigned {
  boolean,
  i8,
  u8,
  i16,
  u16,
  i32,
  u32,
  i64,
  u64,
  f16,
  f32,
  other
};

struct FunctionConstant {
  const char* name;
  unsigned index;
  unsigned size;
  ConstantType type;
  void* value;
  bool* defined;
};

struct Module {
  unsigned abi_version;
  unsigned n_functions;
  const Function* functions;
  unsigned n_constants;
  const FunctionConstant* constants;
  void (*derive_constants)();  ///< recomputes constants made from function constants
  Thread** current;            ///< the device keeps the running thread here
  const Runtime** runtime;
};

}  // namespace msl_host
