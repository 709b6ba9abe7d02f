// What an engine in C does for each token: its K and V go into a paged cache, and its query attends
// over all of the cache, in one go. Every row is checked against attention in double.
//
//   decode [cpu|metal|auto]
#include <math.h>
#include <metal_sdpa/c.h>
#include <stdio.h>
#include <stdlib.h>

enum { HQ = 8, HKV = 2, D = 64, PAGE = 16, PAGES = 8, TOKENS = 100 };

// Pages as a pool hands them out: in no order.
static const int32_t kBlockTable[PAGES] = {5, 2, 7, 0, 3, 6, 1, 4};

typedef struct {
  metal_sdpa_device* device;
  metal_sdpa_buffer *q, *k_new, *v_new, *slot, *k_pages, *v_pages, *block_table, *out;
} engine;

static void check(metal_sdpa_status status) {
  if (status == METAL_SDPA_OK) return;
  fprintf(stderr, "%s: %s\n", metal_sdpa_status_name(status), metal_sdpa_last_message());
  exit(1);
}

static metal_sdpa_buffer* allocate(const metal_sdpa_device* device, metal_sdpa_dtype dtype,
                                   int64_t elements) {
  metal_sdpa_buffer* buffer = NULL;
  check(metal_sdpa_buffer_allocate(device, dtype, elements, &buffer));
  return buffer;
}

static void* data_of(const metal_sdpa_buffer* buffer) {
  metal_sdpa_buffer_info info;
  check(metal_sdpa_buffer_describe(buffer, &info, sizeof info));
  return info.data;
}

static engine open_engine(const char* kind) {
  engine e = {0};
  check(metal_sdpa_device_open(kind, NULL, &e.device));
  e.q = allocate(e.device, METAL_SDPA_F32, HQ * D);
  e.out = allocate(e.device, METAL_SDPA_F32, HQ * D);
  e.k_new = allocate(e.device, METAL_SDPA_F32, HKV * D);
  e.v_new = allocate(e.device, METAL_SDPA_F32, HKV * D);
  e.slot = allocate(e.device, METAL_SDPA_I32, 1);
  e.k_pages = allocate(e.device, METAL_SDPA_F32, PAGES * PAGE * HKV * D);
  e.v_pages = allocate(e.device, METAL_SDPA_F32, PAGES * PAGE * HKV * D);
  e.block_table = allocate(e.device, METAL_SDPA_I32, PAGES);
  int32_t* table = data_of(e.block_table);
  for (int i = 0; i < PAGES; ++i) table[i] = kBlockTable[i];
  return e;
}

static void close_engine(engine* e) {
  metal_sdpa_buffer* const buffers[] = {e->q,       e->k_new,   e->v_new,       e->slot,
                                        e->k_pages, e->v_pages, e->block_table, e->out};
  for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; ++i) {
    metal_sdpa_buffer_release(buffers[i]);
  }
  metal_sdpa_device_close(e->device);
}

static void encode_write(const engine* e, metal_sdpa_encoder* encoder) {
  metal_sdpa_write_kv_problem write;
  check(metal_sdpa_write_kv_problem_init(&write, sizeof write));
  write.tokens = 1;
  write.heads = HKV;
  write.head_dim = write.value_dim = D;
  write.n_pages = PAGES;
  write.page_size = PAGE;
  check(metal_sdpa_write_kv_problem_set_packed_layouts(&write));  // [page, slot, head, D]
  metal_sdpa_write_kv_operands memory;
  check(metal_sdpa_write_kv_operands_init(&memory, sizeof memory));
  memory.k_new = e->k_new;
  memory.v_new = e->v_new;
  memory.k_cache = e->k_pages;
  memory.v_cache = e->v_pages;
  memory.slots = e->slot;
  check(metal_sdpa_encode_write_kv(encoder, &write, &memory));
}

static void encode_attention(const engine* e, metal_sdpa_encoder* encoder, int64_t tokens) {
  metal_sdpa_page_table pages;
  check(metal_sdpa_page_table_init(&pages, sizeof pages));
  pages.page_len = PAGE;
  pages.n_pages = PAGES;
  pages.n_entries = PAGES;
  metal_sdpa_problem problem;
  check(metal_sdpa_problem_init(&problem, sizeof problem));
  problem.n_heads = HQ;
  problem.n_kv_heads = HKV;
  problem.head_dim = problem.value_dim = D;
  problem.seq_len = 1;
  problem.kv_len = tokens;
  problem.pages = &pages;
  problem.scale = 1.0f / sqrtf(D);
  check(metal_sdpa_problem_set_packed_layouts(&problem));
  // The cache has slots before heads.
  problem.k.batch_stride = problem.v.batch_stride = PAGE * HKV * D;
  problem.k.row_stride = problem.v.row_stride = HKV * D;
  problem.k.head_stride = problem.v.head_stride = D;
  metal_sdpa_operands memory;
  check(metal_sdpa_operands_init(&memory, sizeof memory));
  memory.q = e->q;
  memory.k = e->k_pages;
  memory.v = e->v_pages;
  memory.out = e->out;
  memory.block_table = e->block_table;
  check(metal_sdpa_encode_sdpa(encoder, &problem, &memory));
}

static void decode_step(const engine* e, int token) {
  *(int32_t*)data_of(e->slot) = kBlockTable[token / PAGE] * PAGE + token % PAGE;
  metal_sdpa_encoder* encoder = NULL;
  check(metal_sdpa_encoder_open(e->device, &encoder));
  encode_write(e, encoder);
  encode_attention(e, encoder, token + 1);
  check(metal_sdpa_encoder_commit(encoder));
  check(metal_sdpa_encoder_wait(encoder));
  metal_sdpa_encoder_close(encoder);
}

// --- what stands in for a model, and the check ---------------------------------------------------

static void fill(float* numbers, int count, uint32_t* state) {
  for (int i = 0; i < count; ++i) {
    *state = *state * 1664525u + 1013904223u;
    numbers[i] = (float)(*state >> 8) / 4194304.0f - 2.0f;
  }
}

static double dot(const float* a, const float* b) {
  double sum = 0;
  for (int d = 0; d < D; ++d) sum += (double)a[d] * b[d];
  return sum;
}

// The largest difference of a head's row from attention in double over the rows [token][HKV][D].
static double error_of_head(const float* q, const float* k, const float* v, const float* out,
                            int tokens) {
  double row[D] = {0}, total = 0, largest = -INFINITY, error = 0;
  for (int j = 0; j < tokens; ++j) largest = fmax(largest, dot(q, k + j * HKV * D) / sqrt(D));
  for (int j = 0; j < tokens; ++j) {
    const double weight = exp(dot(q, k + j * HKV * D) / sqrt(D) - largest);
    total += weight;
    for (int d = 0; d < D; ++d) row[d] += weight * v[j * HKV * D + d];
  }
  for (int d = 0; d < D; ++d) error = fmax(error, fabs(out[d] - row[d] / total));
  return error;
}

int main(int argc, char** argv) {
  static float keys[TOKENS * HKV * D], values[TOKENS * HKV * D];
  engine e = open_engine(argc > 1 ? argv[1] : "auto");
  uint32_t state = 1;
  double error = 0;
  for (int token = 0; token < TOKENS; ++token) {
    float* const k = data_of(e.k_new);
    float* const v = data_of(e.v_new);
    fill(data_of(e.q), HQ * D, &state);
    fill(k, HKV * D, &state);
    fill(v, HKV * D, &state);
    for (int i = 0; i < HKV * D; ++i) {
      keys[token * HKV * D + i] = k[i];
      values[token * HKV * D + i] = v[i];
    }
    decode_step(&e, token);
    for (int h = 0; h < HQ; ++h) {
      const int kv = h / (HQ / HKV) * D;
      error = fmax(error, error_of_head((const float*)data_of(e.q) + h * D, keys + kv, values + kv,
                                        (const float*)data_of(e.out) + h * D, token + 1));
    }
  }
  metal_sdpa_device_info info;
  check(metal_sdpa_device_describe(e.device, &info, sizeof info));
  printf("decode: %d tokens on the %s device, largest error %.1e\n", TOKENS, info.kind, error);
  close_engine(&e);
  return error < 1e-5 ? 0 : 1;
}
