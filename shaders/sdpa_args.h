// The argument block of every kernel but the packed form of the straightforward one, with the
// buffer indices and function constants that go with it. Shared by host and shader.
#ifndef METAL_SDPA_SDPA_ARGS_H
#define METAL_SDPA_SDPA_ARGS_H

#include "sdpa_band.h"
#include "shader_types.h"

// Buffer indices, the same for every attention kernel.
#define SDPA_BUFFER_Q 0
#define SDPA_BUFFER_K 1
#define SDPA_BUFFER_V 2
#define SDPA_BUFFER_OUT 3
#define SDPA_BUFFER_PARAMS 4      // SdpaParamsBlock; only where SDPA_CONSTANT_GENERAL is false
#define SDPA_BUFFER_ARGS 5        // SdpaArgs
#define SDPA_BUFFER_LSE 6         // f32 [B, Hq, L]; only with SDPA_CONSTANT_LSE
#define SDPA_BUFFER_SEQUENCES 7   // SdpaSequence [B]; only with SDPA_CONSTANT_SEQUENCES
#define SDPA_BUFFER_PARTIAL_O 8   // f32 [B, Hq, L, n_spans, Dv]: numerators of each span's state
#define SDPA_BUFFER_PARTIAL_MS 9  // f32 [B, Hq, L, n_spans, 2]: reference, sum of weights
#define SDPA_BUFFER_PACKED_K 10   // a device's own packing of K
#define SDPA_BUFFER_PACKED_V 11   // a device's own packing of V
#define SDPA_BUFFER_WORK 12       // SdpaWorkItem [grid.y]; only with SDPA_CONSTANT_WORK
#define SDPA_BUFFER_ITEMS 13      // a device's own list of work
#define SDPA_BUFFER_MASK 14       // mask_kind [B, Hq, L, S], any strides; only with a mask
#define SDPA_BUFFER_SINKS 15      // sinks_kind [Hq]; only with SDPA_CONSTANT_SINKS
#define SDPA_BUFFER_ALIBI 16      // f32 [B, Hq]; only with SDPA_CONSTANT_ALIBI
#define SDPA_BUFFER_PAGES 17      // table_kind; only with SDPA_CONSTANT_PAGES

// Function constants, all bool, false where not set.
#define SDPA_CONSTANT_GENERAL 0    // sdpa, sdpa_f16, sdpa_bf16: take SdpaArgs, not SdpaParamsBlock
#define SDPA_CONSTANT_LSE 1        // write the log-sum-exp
#define SDPA_CONSTANT_SEQUENCES 2  // kv_len and q_start come from SdpaSequence [B]
#define SDPA_CONSTANT_ALIGNED 3    // sdpa_decode, sdpa_prefill: rows of q, k, v start on 16 bytes
#define SDPA_CONSTANT_PADDED 4     // sdpa_decode, sdpa_prefill: head_dim is under the kernel's own
#define SDPA_CONSTANT_PARTIAL 5    // write the states of spans, not the output
#define SDPA_CONSTANT_SHARED 6  // sdpa_decode, sdpa_prefill: not all teams have rows of their own
#define SDPA_CONSTANT_WORK 7    // Metal: what a threadgroup works on stands in a list
// A row's keys may begin behind key 0, or rows be out of use; on Metal also: keys may stand more
// than a position apart.
#define SDPA_CONSTANT_WINDOW 8
#define SDPA_CONSTANT_SOFTCAP 9
#define SDPA_CONSTANT_ALIBI 10
#define SDPA_CONSTANT_MASK 11     // a boolean mask
#define SDPA_CONSTANT_BIAS 12     // an additive mask
#define SDPA_CONSTANT_SINKS 13    // a row's sum starts with its head's sink
#define SDPA_CONSTANT_OUT_F32 14  // the output is f32 whatever q's dtype is

#define SDPA_CONSTANT_PAGES 15  // K and V lie in pages

// Element types of a block table.
#define SDPA_INDEX_NONE 0
#define SDPA_INDEX_I32 1
#define SDPA_INDEX_I64 2

// Element types of a mask or of sinks.
#define SDPA_ELEMENT_NONE 0
#define SDPA_ELEMENT_F32 1
#define SDPA_ELEMENT_F16 2
#define SDPA_ELEMENT_BF16 3
#define SDPA_ELEMENT_BOOL 4  // a byte; anything but 0 is True

/// Element strides of a [B, H, rows, D] tensor; the last dimension is contiguous.
struct SdpaStrides {
  sdpa_i64 batch;
  sdpa_i64 head;
  sdpa_i64 row;
};

/// Element strides of a mask over [B, Hq, L, S]; 0 where it is broadcast.
struct SdpaMaskStrides {
  sdpa_i64 batch;
  sdpa_i64 head;
  sdpa_i64 row;
  sdpa_i64 key;
};

/// What the threadgroups of one grid.x work on, where sequences have lengths of their own. The list
/// holds what there is to do, the longest sequence first: a grid of the longest sequence's spans
/// for all of them would be mostly empty, and would start its last threadgroups late.
struct SdpaWorkItem {
  SdpaSequence sequence;
  sdpa_u32 batch_index;  ///< which sequence of the problem it is
  sdpa_u32 span;         ///< counted from key 0; unused by the merge, which takes all of them
  sdpa_u32 span_len;     ///< keys of one span of this sequence
  sdpa_u32 n_spans;      ///< spans of this sequence that rows of the dispatch see
  sdpa_u32 first_span;   ///< such spans, in this dispatch, of the sequences before it
  sdpa_u32 seen_begin;   ///< the first such span of this sequence
};

/// One attention problem: q [B, Hq, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv], out [B, Hq, L, Dv].
/// Element [b][h][i][d] of x stands at x_offset + b * batch + h * head + i * row + d elements
/// from the start of its buffer binding. Rows i of q, out, lse and mask are counted from the
/// sequence's q_row on; rows of k and v from its key_begin on, or, where they lie in pages of
/// page_len rows, row j is row j % page_len of page table[key_begin + j / page_len * table_stride],
/// a page being what a batch index is elsewhere. sdpa_band.h says which keys a row sees; scores are
/// what ScoreTransform of metal_sdpa/sdpa.h says. A dispatch works on sequences batch_begin +
/// grid.x, heads head_begin + ..., rows row_begin to row_end; lse and sequences are indexed by the
/// whole problem's b, h and i. On Metal partials are those of the dispatch: [its sequences][its
/// heads][its rows][spans of the sequence that its rows see].
struct SdpaArgs {
  SdpaStrides q_stride;
  SdpaStrides k_stride;
  SdpaStrides v_stride;
  SdpaStrides out_stride;
  sdpa_i64 q_offset;
  sdpa_i64 k_offset;
  sdpa_i64 v_offset;
  sdpa_i64 out_offset;
  SdpaSequence sequence;  ///< every one, where SDPA_CONSTANT_SEQUENCES and _WORK are false
  SdpaWindow window;
  SdpaMaskStrides mask_stride;
  sdpa_i64 mask_offset;
  sdpa_i64 alibi_offset;
  sdpa_i64 alibi_batch;  ///< stride
  sdpa_i64 alibi_head;   ///< stride
  sdpa_i64 sinks_offset;
  sdpa_i64 sinks_head;    ///< stride
  sdpa_i64 lse_batch;     ///< stride
  sdpa_i64 lse_head;      ///< stride
  sdpa_i64 table_stride;  ///< of entries of the block table
  sdpa_u32 batch;         ///< B
  sdpa_u32 n_heads;       ///< Hq
  sdpa_u32 n_kv_heads;    ///< Hkv; query head h reads KV head h / (Hq / Hkv)
  sdpa_u32 seq_len;       ///< L
  sdpa_u32 head_dim;      ///< D
  sdpa_u32 value_dim;     ///< Dv
  float scale;            ///< factor on q.k, natural units (a kernel that uses exp2 applies log2 e)
  float softcap;          ///< c of c * tanh(x / c), natural units; 0: off
  sdpa_u32 span_len;      ///< keys of one span; spans start at key 0
  sdpa_u32 n_spans;       ///< spans that the partial buffers have room for, per row
  sdpa_u32 row_begin;     ///< first query row of this dispatch (long plans are cut at row tiles)
  sdpa_u32 row_end;       ///< one past the last query row of this dispatch
  sdpa_u32 span_begin;    ///< first span of this dispatch
  sdpa_u32 group_split;   ///< how the device's kernel shares out rows; its plan sets it
  sdpa_u32 batch_begin;   ///< first sequence of this dispatch
  sdpa_u32 head_begin;    ///< first query head of this dispatch; a multiple of Hq / Hkv
  sdpa_u32 head_end;      ///< one past the last query head of this dispatch
  sdpa_u32 span_end;      ///< one past the last span of this dispatch
  sdpa_u32 mask_kind;     ///< SDPA_ELEMENT_*: BOOL hides where it is 0, the others are added
  sdpa_u32 sinks_kind;    ///< SDPA_ELEMENT_*
  sdpa_u32 has_alibi;     ///< 1: slopes are bound
  sdpa_u32 out_f32;       ///< 1: the output is f32, else of q's dtype
  sdpa_u32 seen_begin;    ///< Metal: first span that rows of this dispatch see; n_spans of them
  sdpa_u32 page_len;      ///< rows of a page; 0: k and v are no pages
  sdpa_u32 table_kind;    ///< SDPA_INDEX_*
  sdpa_u32 packed_rows;  ///< 1: rows past a sequence's query_len are another's, and are not written
};

SDPA_SHARED_ASSERT(sizeof(SdpaStrides) == 24, "three 64-bit strides");
SDPA_SHARED_ASSERT(sizeof(SdpaWorkItem) == 72, "host and shader agree on 72 bytes");
SDPA_SHARED_ASSERT(offsetof(SdpaWorkItem, batch_index) == 48, "32-bit fields come last");
SDPA_SHARED_ASSERT(sizeof(SdpaArgs) == 416, "host and shader agree on 416 bytes");
SDPA_SHARED_ASSERT(offsetof(SdpaArgs, q_offset) == 96, "offsets follow the strides");
SDPA_SHARED_ASSERT(offsetof(SdpaArgs, sequence) == 128, "positions follow the offsets");
SDPA_SHARED_ASSERT(offsetof(SdpaArgs, mask_stride) == 208, "what comes with scores");
SDPA_SHARED_ASSERT(offsetof(SdpaArgs, batch) == 312, "32-bit fields come last");
SDPA_SHARED_ASSERT(offsetof(SdpaArgs, scale) == 336, "scale after the shape");
SDPA_SHARED_ASSERT(offsetof(SdpaArgs, batch_begin) == 368, "batch_begin, then the heads");
SDPA_SHARED_ASSERT(offsetof(SdpaArgs, seen_begin) == 400, "what only Metal has comes last");

#endif  // METAL_SDPA_SDPA_ARGS_H
