// The C interface: attention, caches and merges for engines in C, Rust, Go, Swift, Zig and whatever
// else calls C. Plain C11, nothing of C++ crosses it.
//
// Calls. Every function that can fail returns a status; metal_sdpa_last_message() says in words
// which argument was wrong, what was given and what is taken. Nothing is written and no handle is
// made where a call fails. No exception leaves a call.
//
// Structs begin with their size. The init function of a struct fills it with the defaults that its
// fields name; call it first, with sizeof, then set fields:
//
//   metal_sdpa_problem problem;
//   metal_sdpa_problem_init(&problem, sizeof problem);
//
// Later versions add fields at the end. A struct of an older header works: the fields that it lacks
// have their defaults. One of a newer header works as long as the fields that this library does not
// know are 0. Layouts have no size and never change. Pointers in structs are read during the call
// and not kept.
//
// Handles are opaque. Each that a call makes is given back once, by the close or release function
// of its kind, which takes NULL too and does nothing then; all else refuses NULL. A handle that was
// given back must not be used again: that is not found out, as with free(). Handles may be given
// back in any order: a Buffer outlives its device's handle, and work in flight outlives both.
//
// Threads. Any function may be called from any thread. One device or Buffer may be used by many
// threads at once; an encoder by one at a time. Calls that write the same memory are the caller's
// to keep apart. A thread inside a call must not be cancelled (pthread_cancel).
//
// Names of tensors: B sequences, Hq query heads, Hkv KV heads, L query rows, S slots of a cache, D
// and Dv elements of a row of q, k and of v. Strides and offsets count elements. Flags are 0 or
// anything else.
//
// Example: 4 query heads over 2 KV heads, one new row over a cache of 512 slots, 100 in use.
//
//   metal_sdpa_device* device = NULL;
//   metal_sdpa_buffer *q = NULL, *k = NULL, *v = NULL, *out = NULL;
//   metal_sdpa_device_open("cpu", NULL, &device);
//   metal_sdpa_buffer_wrap(device, METAL_SDPA_F32, q_data, q_bytes, 1, NULL, NULL, &q);
//   ... k, v and out likewise, out with read_only 0 ...
//   metal_sdpa_problem problem;
//   metal_sdpa_problem_init(&problem, sizeof problem);
//   problem.n_heads = 4;  problem.n_kv_heads = 2;
//   problem.seq_len = 1;  problem.kv_capacity = 512;  problem.kv_len = 100;
//   problem.head_dim = problem.value_dim = 64;  problem.scale = 0.125f;
//   metal_sdpa_problem_set_packed_layouts(&problem);
//   metal_sdpa_operands operands;
//   metal_sdpa_operands_init(&operands, sizeof operands);
//   operands.q = q;  operands.k = k;  operands.v = v;  operands.out = out;
//   if (metal_sdpa_sdpa(device, &problem, &operands) != METAL_SDPA_OK)
//     fprintf(stderr, "%s\n", metal_sdpa_last_message());
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "metal_sdpa/export.h"
#include "metal_sdpa/version.h"

#ifdef __cplusplus
extern "C" {
#endif

// --- status --------------------------------------------------------------------------------------

typedef enum metal_sdpa_status {
  METAL_SDPA_OK = 0,
  METAL_SDPA_INVALID_ARGUMENT = 1,    ///< a value, shape, state, range or handle not taken
  METAL_SDPA_UNSUPPORTED_DTYPE = 2,   ///< a dtype, or a mix of dtypes, not taken
  METAL_SDPA_UNSUPPORTED = 3,         ///< not built yet, not on this device, or a newer header's
  METAL_SDPA_DEVICE_NOT_FOUND = 4,    ///< no such device kind, or no such device on this machine
  METAL_SDPA_KERNEL_NOT_FOUND = 5,    ///< no kernel of that name for this device
  METAL_SDPA_SHADER_COMPILATION = 6,  ///< the compiler refused; the message holds its whole log
  METAL_SDPA_COMMAND_BUFFER = 7,      ///< the device reported an error while it ran
  METAL_SDPA_BUFFER_ALLOCATION = 8,   ///< the device had no memory for a buffer
  METAL_SDPA_INTERRUPTED = 9,         ///< the process's interrupt check asked to stop
  METAL_SDPA_OUT_OF_MEMORY = 10,      ///< the host had no memory for the call itself
  METAL_SDPA_INTERNAL = 11            ///< anything else; the message is the exception's
} metal_sdpa_status;

/// "ok", "invalid_argument", ...; "unknown" for a number that is none of them. Lives forever.
METAL_SDPA_API const char* metal_sdpa_status_name(metal_sdpa_status status);

/// Why the last call of this thread failed that did; "" where none has. Calls that succeed leave
/// it. Valid until the next call of this thread that fails, and at most as long as the thread.
METAL_SDPA_API const char* metal_sdpa_last_message(void);

/// METAL_SDPA_VERSION of the library, which may be another than the header's.
METAL_SDPA_API const char* metal_sdpa_version(void);

// --- dtypes --------------------------------------------------------------------------------------

/// One of the constants below.
typedef int32_t metal_sdpa_dtype;

enum {
  METAL_SDPA_F32 = 0,   ///< IEEE 754 binary32
  METAL_SDPA_F16 = 1,   ///< IEEE 754 binary16
  METAL_SDPA_BF16 = 2,  ///< bfloat16: the upper half of a binary32
  METAL_SDPA_U8 = 3,
  METAL_SDPA_U16 = 4,
  METAL_SDPA_U32 = 5,
  METAL_SDPA_I32 = 6,
  METAL_SDPA_I64 = 7
};

// --- devices -------------------------------------------------------------------------------------

/// A place where kernels run. Two handles of one kind are the same device.
typedef struct metal_sdpa_device metal_sdpa_device;

typedef struct metal_sdpa_device_options {
  size_t struct_size;
  const char* isa;  ///< CPU instruction set by name ("baseline", "avx2", ...); NULL: the best here
  int32_t threads;  ///< CPU threads for work from this handle; 0: metal_sdpa_get_num_threads()
} metal_sdpa_device_options;

METAL_SDPA_API metal_sdpa_status metal_sdpa_device_options_init(metal_sdpa_device_options* options,
                                                                size_t struct_size);

/// `kind`: "cpu", "metal", or "auto" or NULL for Metal where there is one, else the CPU. `options`
/// may be NULL. DEVICE_NOT_FOUND where the kind or the device does not exist.
METAL_SDPA_API metal_sdpa_status metal_sdpa_device_open(const char* kind,
                                                        const metal_sdpa_device_options* options,
                                                        metal_sdpa_device** device);
METAL_SDPA_API void metal_sdpa_device_close(metal_sdpa_device* device);

typedef struct metal_sdpa_device_info {
  size_t struct_size;
  const char* kind;  ///< "cpu" or "metal"; lives forever
  const char* name;  ///< valid as long as the handle
  uint64_t max_buffer_bytes;
  uint32_t max_head_dim;  ///< for D and Dv
} metal_sdpa_device_info;

/// Fills `info`; struct_size is the sizeof that the caller was compiled with.
METAL_SDPA_API metal_sdpa_status metal_sdpa_device_describe(const metal_sdpa_device* device,
                                                            metal_sdpa_device_info* info,
                                                            size_t struct_size);

/// OK where the device has the feature, UNSUPPORTED with the reason where not, INVALID_ARGUMENT
/// where no such feature is known. Features: "mask", "window", "softcap", "paged", ... as
/// `metal_sdpa.supports` of Python lists them.
METAL_SDPA_API metal_sdpa_status metal_sdpa_device_require(const metal_sdpa_device* device,
                                                           const char* feature);

/// Waits for everything committed to the device before the call; fails with the first error that
/// nobody waited for.
METAL_SDPA_API metal_sdpa_status metal_sdpa_device_synchronize(const metal_sdpa_device* device);

/// Threads that CPU work uses unless its handle says otherwise. Results do not depend on it.
METAL_SDPA_API int32_t metal_sdpa_get_num_threads(void);
/// INVALID_ARGUMENT below 1 or above 1024.
METAL_SDPA_API metal_sdpa_status metal_sdpa_set_num_threads(int32_t threads);

/// Waits for what was committed to all devices and ends the library's threads, before dlclose or
/// fork for one; a later call starts them anew.
METAL_SDPA_API void metal_sdpa_shutdown(void);

// --- buffers -------------------------------------------------------------------------------------

/// A typed view of device memory. The memory lives as long as a handle, an encoder or work in
/// flight refers to it.
typedef struct metal_sdpa_buffer metal_sdpa_buffer;

/// Called once, when nothing refers to wrapped memory any more; on any thread, which may be the one
/// that released the last handle or one of the library's own. It must neither call the library nor
/// throw. Never called where the wrap failed.
typedef void (*metal_sdpa_release_callback)(void* context);

/// Zero-filled memory for `elements`, 1 or more, at a 128-byte boundary. BUFFER_ALLOCATION where
/// the device has no room.
METAL_SDPA_API metal_sdpa_status metal_sdpa_buffer_allocate(const metal_sdpa_device* device,
                                                            metal_sdpa_dtype dtype,
                                                            int64_t elements,
                                                            metal_sdpa_buffer** buffer);

/// The caller's memory without a copy: `byte_len` bytes from `data`, whole elements at an address
/// aligned to one; Metal takes page-aligned memory and whole pages. What is read_only is refused as
/// an output. `release` may be NULL: the caller then keeps the memory until nothing uses it.
METAL_SDPA_API metal_sdpa_status metal_sdpa_buffer_wrap(const metal_sdpa_device* device,
                                                        metal_sdpa_dtype dtype, void* data,
                                                        size_t byte_len, int32_t read_only,
                                                        metal_sdpa_release_callback release,
                                                        void* context, metal_sdpa_buffer** buffer);

/// A native buffer (id<MTLBuffer>) from `byte_offset`; UNSUPPORTED on the CPU.
METAL_SDPA_API metal_sdpa_status metal_sdpa_buffer_wrap_native(const metal_sdpa_device* device,
                                                               metal_sdpa_dtype dtype, void* handle,
                                                               size_t byte_offset, size_t byte_len,
                                                               metal_sdpa_release_callback release,
                                                               void* context,
                                                               metal_sdpa_buffer** buffer);

/// Another handle, of `elements` from `byte_offset` of this one's view.
METAL_SDPA_API metal_sdpa_status metal_sdpa_buffer_slice(const metal_sdpa_buffer* buffer,
                                                         size_t byte_offset, size_t elements,
                                                         metal_sdpa_buffer** slice);

METAL_SDPA_API void metal_sdpa_buffer_release(metal_sdpa_buffer* buffer);

typedef struct metal_sdpa_buffer_info {
  size_t struct_size;
  void* data;       ///< first byte in host memory, NULL where the device shares none with the host
  size_t byte_len;  ///< of this view
  metal_sdpa_dtype dtype;
  int32_t read_only;
} metal_sdpa_buffer_info;

/// Fills `info`; does not wait for work in flight.
METAL_SDPA_API metal_sdpa_status metal_sdpa_buffer_describe(const metal_sdpa_buffer* buffer,
                                                            metal_sdpa_buffer_info* info,
                                                            size_t struct_size);

// --- attention -----------------------------------------------------------------------------------

/// Where a field says that it may be: not given.
#define METAL_SDPA_UNSET INT64_MIN
/// Of a window's side.
#define METAL_SDPA_UNLIMITED (-1)

/// Element [b][h][i][d] is offset + b * batch_stride + h * head_stride + i * row_stride + d
/// elements from the start of its Buffer. Strides may be zero or negative, but for outputs, whose
/// elements must not share memory. Tokens before heads, [T, H, D]: head_stride D, row_stride H * D.
typedef struct metal_sdpa_tensor_layout {
  int64_t offset;
  int64_t batch_stride;
  int64_t head_stride;
  int64_t row_stride;
} metal_sdpa_tensor_layout;

/// Element [b][h][i][j] of a mask over [B, Hq, L, S]; a stride of 0 broadcasts. u8: anything but 0
/// lets the row see the key. f32, f16 and bf16: added to the score; -inf hides. Over packed query
/// rows i counts rows of all sequences and b means nothing.
typedef struct metal_sdpa_mask_layout {
  int64_t offset;
  int64_t batch_stride;
  int64_t head_stride;
  int64_t row_stride;
  int64_t key_stride;
  metal_sdpa_dtype dtype;
} metal_sdpa_mask_layout;

/// The number of (b, h) is offset + b * batch_stride + h * head_stride elements from the start.
typedef struct metal_sdpa_head_layout {
  int64_t offset;
  int64_t batch_stride;
  int64_t head_stride;
  metal_sdpa_dtype dtype;
} metal_sdpa_head_layout;

/// K and V in pages: k [n_pages, Hkv, page_len, D], v [n_pages, Hkv, page_len, Dv], in any strides
/// (batch strides are those of pages). Slot j of a sequence is row j % page_len of the page that
/// its entry j / page_len of the block table names.
typedef struct metal_sdpa_page_table {
  size_t struct_size;
  metal_sdpa_dtype dtype;   ///< of the table: i32 (the default) or i64
  int32_t check_entries;    ///< refuse entries in use that name no page; on by default
  int64_t page_len;         ///< slots of a page
  int64_t n_pages;          ///< pages that k and v hold
  int64_t n_entries;        ///< of one sequence, or of all with `starts`
  int64_t offset;           ///< of entry [0][0] from the start of the Buffer; 0
  int64_t sequence_stride;  ///< between the first entries of two sequences; 0
  int64_t entry_stride;     ///< 1
  const int64_t* starts;    ///< [B] first entry of each sequence; NULL: sequence_stride says it
} metal_sdpa_page_table;

METAL_SDPA_API metal_sdpa_status metal_sdpa_page_table_init(metal_sdpa_page_table* table,
                                                            size_t struct_size);

/// One attention problem: out = softmax(rule(q . k)) v. q [B, Hq, L, D], k [B, Hkv, S, D],
/// v [B, Hkv, S, Dv], out [B, Hq, L, Dv], lse f32 [B, Hq, L] packed row-major. B, L and S may be 0.
///
/// The rule: times scale; with a softcap c, c * tanh(x / c); less ALiBi's slope * |position of the
/// query - position of the key|; plus an additive mask. The sink is one more score of each row,
/// which has no value. A row that sees no key is 0, its lse -inf or its sink.
///
/// Query i of a sequence stands at position q_start + i, slot j at key_offset + j * key_stride. It
/// sees slots kv_start to kv_len whose position lies at most window_left before its own and
/// window_right behind it; with `causal` nothing behind its own.
///
/// Packed rows (varlen): with cu_seqlens_q, q and out are [Hq, Tq, D] and lse is [Hq, Tq]; with
/// cu_seqlens_k, k and v are [Hkv, Tk, D]; batch strides mean nothing there. Sequence b owns rows
/// cu_seqlens[b] to cu_seqlens[b + 1]. Rows that no sequence uses are left as they are. Sequences
/// whose rows do not stand one behind the other give q_rows and query_lengths, kv_rows and
/// kv_lengths instead.
typedef struct metal_sdpa_problem {
  size_t struct_size;
  metal_sdpa_dtype dtype;  ///< of q, k and v: f32 (the default), f16 or bf16
  int32_t out_f32;         ///< out is f32 whatever dtype is; 0
  int32_t return_lse;      ///< write the natural log of the softmax denominator to lse; 0
  int32_t causal;          ///< 0

  int64_t batch;        ///< B; 1
  int64_t n_heads;      ///< Hq, a multiple of n_kv_heads; to be set
  int64_t n_kv_heads;   ///< Hkv; query head h reads KV head h / (Hq / Hkv); to be set
  int64_t seq_len;      ///< L; to be set, UNSET with packed queries: the longest sequence's
  int64_t kv_capacity;  ///< S; to be set, UNSET with packed keys or pages: the most that is in use
  int64_t head_dim;     ///< D; to be set
  int64_t value_dim;    ///< Dv; to be set
  metal_sdpa_tensor_layout q, k, v, out;  ///< metal_sdpa_problem_set_packed_layouts, or by hand

  float scale;    ///< finite, 0 and negative allowed; to be set, often 1 / sqrt(D)
  float softcap;  ///< finite and positive; 0: off
  const metal_sdpa_mask_layout* mask;          ///< NULL: none
  const metal_sdpa_head_layout* alibi_slopes;  ///< f32, finite; NULL: none
  const metal_sdpa_head_layout* sinks;         ///< f32 or dtype, finite or -inf, the same for all b

  int64_t window_left;           ///< 0 or more positions, or UNLIMITED (the default)
  int64_t window_right;          ///< likewise
  int64_t kv_len;                ///< one past the last slot in use, 0 to S; UNSET: S, or its range
  int64_t kv_start;              ///< first slot in use, 0 to S; 0
  int64_t q_start;               ///< UNSET: the last row in use meets the last key
  int64_t query_len;             ///< rows in use, 0 to L; later ones see none; UNSET: L
  const int64_t* kv_lengths;     ///< [B], in place of kv_len; NULL
  const int64_t* kv_starts;      ///< [B], in place of kv_start; NULL
  const int64_t* q_starts;       ///< [B], in place of q_start; NULL
  const int64_t* query_lengths;  ///< [B], in place of query_len; NULL
  int64_t key_offset;            ///< of a shard of the keys; other than 0 wants a q_start; 0
  int64_t key_stride;            ///< 1 or more; other than 1 wants a q_start; 1

  const int64_t* cu_seqlens_q;  ///< [B + 1], from 0, not falling; NULL
  const int64_t* cu_seqlens_k;  ///< [B + 1], from 0, not falling; NULL
  const int64_t* q_rows;        ///< [B] first row of each in q, out and lse; NULL
  const int64_t* kv_rows;       ///< [B] first row of each in k and v; NULL
  int64_t q_total;              ///< Tq; UNSET with cu_seqlens_q: its last entry
  int64_t kv_total;             ///< Tk; UNSET with cu_seqlens_k: its last entry

  const metal_sdpa_page_table* pages;  ///< NULL: k and v are in no pages
  const char* kernel;  ///< a kernel family to force ("sdpa", "sdpa_decode", ...); NULL: the best
} metal_sdpa_problem;

METAL_SDPA_API metal_sdpa_status metal_sdpa_problem_init(metal_sdpa_problem* problem,
                                                         size_t struct_size);

/// Sets the layouts of q, k, v and out to packed row-major ones of the shapes above, heads before
/// rows. Extents, packed rows and pages have to be set before.
METAL_SDPA_API metal_sdpa_status metal_sdpa_problem_set_packed_layouts(metal_sdpa_problem* problem);

/// Memory of a problem. Those from `lse` on are given where the problem has them, else they are
/// NULL. A tensor without elements may be NULL.
typedef struct metal_sdpa_operands {
  size_t struct_size;
  const metal_sdpa_buffer* q;
  const metal_sdpa_buffer* k;
  const metal_sdpa_buffer* v;
  metal_sdpa_buffer* out;
  metal_sdpa_buffer* lse;
  const metal_sdpa_buffer* mask;
  const metal_sdpa_buffer* sinks;
  const metal_sdpa_buffer* alibi_slopes;
  const metal_sdpa_buffer* block_table;
} metal_sdpa_operands;

/// All NULL.
METAL_SDPA_API metal_sdpa_status metal_sdpa_operands_init(metal_sdpa_operands* operands,
                                                          size_t struct_size);

/// Checks, plans, runs and waits.
METAL_SDPA_API metal_sdpa_status metal_sdpa_sdpa(const metal_sdpa_device* device,
                                                 const metal_sdpa_problem* problem,
                                                 const metal_sdpa_operands* operands);

// --- caches --------------------------------------------------------------------------------------

/// Element [t][h][d] of new rows: offset + t * token_stride + h * head_stride + d.
typedef struct metal_sdpa_token_layout {
  int64_t offset;
  int64_t token_stride;
  int64_t head_stride;
} metal_sdpa_token_layout;

/// Element [page][i][h][d] of a cache: offset + page * page_stride + i * slot_stride +
/// h * head_stride + d. Slots before heads and heads before slots are both such.
typedef struct metal_sdpa_page_layout {
  int64_t offset;
  int64_t page_stride;
  int64_t slot_stride;
  int64_t head_stride;
} metal_sdpa_page_layout;

/// k_new [T, Hkv, D] and v_new [T, Hkv, Dv] go to slots i32 [T] of k_cache [n_pages, page_size,
/// Hkv, D] and v_cache [n_pages, page_size, Hkv, Dv], in place; slot = page * page_size + place in
/// it. A contiguous cache [B, S, Hkv, D] is one of B pages of S slots. A slot of -1 leaves its
/// token out.
typedef struct metal_sdpa_write_kv_problem {
  size_t struct_size;
  metal_sdpa_dtype dtype;  ///< of all four: f32 (the default), f16 or bf16
  int32_t check_slots;     ///< refuse slots out of range or twice the same; on by default
  int64_t tokens;          ///< T; 0
  int64_t heads;           ///< Hkv; to be set
  int64_t head_dim;        ///< D; to be set
  int64_t value_dim;       ///< Dv; to be set
  int64_t n_pages;         ///< 1
  int64_t page_size;       ///< slots of a page; to be set
  metal_sdpa_token_layout k_new, v_new;
  metal_sdpa_page_layout k_cache, v_cache;
} metal_sdpa_write_kv_problem;

METAL_SDPA_API metal_sdpa_status
metal_sdpa_write_kv_problem_init(metal_sdpa_write_kv_problem* problem, size_t struct_size);

/// Packed row-major layouts of the shapes above; the caches with slots before heads.
METAL_SDPA_API metal_sdpa_status
metal_sdpa_write_kv_problem_set_packed_layouts(metal_sdpa_write_kv_problem* problem);

typedef struct metal_sdpa_write_kv_operands {
  size_t struct_size;
  const metal_sdpa_buffer* k_new;
  const metal_sdpa_buffer* v_new;
  metal_sdpa_buffer* k_cache;
  metal_sdpa_buffer* v_cache;
  const metal_sdpa_buffer* slots;
} metal_sdpa_write_kv_operands;

/// All NULL.
METAL_SDPA_API metal_sdpa_status
metal_sdpa_write_kv_operands_init(metal_sdpa_write_kv_operands* operands, size_t struct_size);

/// Checks, runs and waits. Refused before anything is written: slots out of range or twice the
/// same, memory that is too short, caches that overlap each other or the new rows.
METAL_SDPA_API metal_sdpa_status metal_sdpa_write_kv(const metal_sdpa_device* device,
                                                     const metal_sdpa_write_kv_problem* problem,
                                                     const metal_sdpa_write_kv_operands* operands);

// --- attention over parts of the keys ------------------------------------------------------------

/// Element [i][b][h][r][d] of several states: offset + i * state_stride + b * batch_stride +
/// h * head_stride + r * row_stride + d.
typedef struct metal_sdpa_states_layout {
  int64_t offset;
  int64_t state_stride;
  int64_t batch_stride;
  int64_t head_stride;
  int64_t row_stride;
} metal_sdpa_states_layout;

/// outs [n, B, H, rows, width] with log-sum-exps f32 lses [n, B, H, rows] become out [B, H, rows,
/// width] and lse f32 [B, H, rows]: out = sum_i w_i out_i / sum_i w_i, w_i = exp(lse_i), lse = log
/// sum_i w_i. A state whose lse is -inf counts for nothing, whatever its out holds.
typedef struct metal_sdpa_merge_problem {
  size_t struct_size;
  metal_sdpa_dtype dtype;      ///< of outs: f32 (the default), f16 or bf16
  metal_sdpa_dtype out_dtype;  ///< of out: f32 (the default), f16 or bf16
  int64_t n_states;            ///< n, 1 or more; to be set
  int64_t batch;               ///< B; 1
  int64_t heads;               ///< H; to be set
  int64_t rows;                ///< to be set
  int64_t width;               ///< elements of a row: Dv of the attention; to be set
  metal_sdpa_states_layout outs, lses;
  metal_sdpa_tensor_layout out, lse;
} metal_sdpa_merge_problem;

METAL_SDPA_API metal_sdpa_status metal_sdpa_merge_problem_init(metal_sdpa_merge_problem* problem,
                                                               size_t struct_size);

/// Packed row-major layouts of the shapes above.
METAL_SDPA_API metal_sdpa_status
metal_sdpa_merge_problem_set_packed_layouts(metal_sdpa_merge_problem* problem);

typedef struct metal_sdpa_merge_operands {
  size_t struct_size;
  const metal_sdpa_buffer* outs;
  const metal_sdpa_buffer* lses;
  metal_sdpa_buffer* out;
  metal_sdpa_buffer* lse;
} metal_sdpa_merge_operands;

/// All NULL.
METAL_SDPA_API metal_sdpa_status metal_sdpa_merge_operands_init(metal_sdpa_merge_operands* operands,
                                                                size_t struct_size);

/// Checks, runs and waits. `out` and `lse` may be one of the states' own memory, element for
/// element; any other overlap is refused.
METAL_SDPA_API metal_sdpa_status metal_sdpa_merge_states(const metal_sdpa_device* device,
                                                         const metal_sdpa_merge_problem* problem,
                                                         const metal_sdpa_merge_operands* operands);

// --- one schedule for many layers ----------------------------------------------------------------

/// A problem that is checked and planned once and run on the memory of many layers; the bits are
/// those of metal_sdpa_sdpa. Safe from any thread; a run that is under way keeps the schedule that
/// it began with.
typedef struct metal_sdpa_prepared metal_sdpa_prepared;

/// `block_table`: of a problem with pages, checked now and read by every run that gives none; NULL:
/// each run gives its own.
METAL_SDPA_API metal_sdpa_status metal_sdpa_prepare(const metal_sdpa_device* device,
                                                    const metal_sdpa_problem* problem,
                                                    const metal_sdpa_buffer* block_table,
                                                    metal_sdpa_prepared** prepared);

/// Runs on these operands and waits. `scratch`: memory of any contents and dtype, at least
/// scratch_bytes, which no other work may use meanwhile; NULL: the device's own.
METAL_SDPA_API metal_sdpa_status metal_sdpa_prepared_run(const metal_sdpa_prepared* prepared,
                                                         const metal_sdpa_operands* operands,
                                                         const metal_sdpa_buffer* scratch);

/// Plans anew for the lengths, starts and windows of `problem` (causal, window_left to key_stride),
/// at most the kv_capacity that was prepared. Extents, packed rows and pages have to be those that
/// were prepared; layouts, scores and dtypes are not looked at. A table that is given takes the
/// place of the one before. Nothing changes where the call fails.
METAL_SDPA_API metal_sdpa_status metal_sdpa_prepared_update(metal_sdpa_prepared* prepared,
                                                            const metal_sdpa_problem* problem,
                                                            const metal_sdpa_buffer* block_table);

typedef struct metal_sdpa_prepared_info {
  size_t struct_size;
  uint64_t scratch_bytes;  ///< enough for run and encode until the next update; 0: none is wanted
} metal_sdpa_prepared_info;

/// Fills `info`.
METAL_SDPA_API metal_sdpa_status metal_sdpa_prepared_describe(const metal_sdpa_prepared* prepared,
                                                              metal_sdpa_prepared_info* info,
                                                              size_t struct_size);

METAL_SDPA_API void metal_sdpa_prepared_release(metal_sdpa_prepared* prepared);

// --- many calls at once --------------------------------------------------------------------------

/// Records calls and hands them to the device in one go; barriers are placed where calls touch the
/// same memory. One-shot and for one thread at a time: open, encode, commit, wait, close. A call in
/// the wrong state is INVALID_ARGUMENT. Memory that was recorded stays alive until the device is
/// done with it; its contents are read when the device runs.
typedef struct metal_sdpa_encoder metal_sdpa_encoder;

METAL_SDPA_API metal_sdpa_status metal_sdpa_encoder_open(const metal_sdpa_device* device,
                                                         metal_sdpa_encoder** encoder);

/// What metal_sdpa_sdpa, _prepared_run, _write_kv and _merge_states check and do, recorded.
/// Nothing is recorded where one fails, and what was recorded before stays.
METAL_SDPA_API metal_sdpa_status metal_sdpa_encode_sdpa(metal_sdpa_encoder* encoder,
                                                        const metal_sdpa_problem* problem,
                                                        const metal_sdpa_operands* operands);
METAL_SDPA_API metal_sdpa_status metal_sdpa_encode_prepared(metal_sdpa_encoder* encoder,
                                                            const metal_sdpa_prepared* prepared,
                                                            const metal_sdpa_operands* operands,
                                                            const metal_sdpa_buffer* scratch);
METAL_SDPA_API metal_sdpa_status
metal_sdpa_encode_write_kv(metal_sdpa_encoder* encoder, const metal_sdpa_write_kv_problem* problem,
                           const metal_sdpa_write_kv_operands* operands);
METAL_SDPA_API metal_sdpa_status
metal_sdpa_encode_merge_states(metal_sdpa_encoder* encoder, const metal_sdpa_merge_problem* problem,
                               const metal_sdpa_merge_operands* operands);

/// Hands what was recorded to the device's in-order queue and returns.
METAL_SDPA_API metal_sdpa_status metal_sdpa_encoder_commit(metal_sdpa_encoder* encoder);
/// Waits for it, and fails with its error.
METAL_SDPA_API metal_sdpa_status metal_sdpa_encoder_wait(metal_sdpa_encoder* encoder);

/// What was not committed is discarded; what was runs to its end.
METAL_SDPA_API void metal_sdpa_encoder_close(metal_sdpa_encoder* encoder);

#ifdef __cplusplus
}  // extern "C"
#endif
