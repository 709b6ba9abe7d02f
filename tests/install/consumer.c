/* What a program in C relies on, compiled by a C compiler alone: results, statuses, messages, its
   own memory and when it gets it back. */
#include <math.h>
#include <metal_sdpa/c.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void expect(int condition, const char* what) {
  if (condition) return;
  printf("C consumer: %s: %s\n", what, metal_sdpa_last_message());
  exit(1);
}

static void count(void* context) { ++*(int*)context; }

int main(void) {
  static float numbers[4][12];
  static int released = 0;
  metal_sdpa_device* device = NULL;
  metal_sdpa_buffer* buffers[4] = {NULL, NULL, NULL, NULL};
  metal_sdpa_problem problem;
  metal_sdpa_operands operands;
  int i;
  expect(strcmp(metal_sdpa_version(), METAL_SDPA_VERSION) == 0, "version");
  expect(metal_sdpa_device_open("cpu", NULL, &device) == METAL_SDPA_OK, "device");
  for (i = 0; i < 12; ++i) numbers[2][i] = (float)i;
  for (i = 0; i < 4; ++i) {
    expect(metal_sdpa_buffer_wrap(device, METAL_SDPA_F32, numbers[i], sizeof numbers[i], i < 3,
                                  &count, &released, &buffers[i]) == METAL_SDPA_OK,
           "wrap");
  }
  expect(metal_sdpa_problem_init(&problem, sizeof problem) == METAL_SDPA_OK, "init");
  problem.n_heads = 2;
  problem.n_kv_heads = 1;
  problem.seq_len = 1;
  problem.kv_capacity = 3;
  problem.head_dim = problem.value_dim = 4;
  problem.scale = 1;
  expect(metal_sdpa_problem_set_packed_layouts(&problem) == METAL_SDPA_OK, "layouts");
  expect(metal_sdpa_operands_init(&operands, sizeof operands) == METAL_SDPA_OK, "operands");
  operands.q = buffers[0];
  operands.k = buffers[1];
  operands.v = buffers[2];
  operands.out = buffers[3];
  expect(metal_sdpa_sdpa(device, &problem, &operands) == METAL_SDPA_OK, "sdpa");
  for (i = 0; i < 8; ++i) {
    expect(fabsf(numbers[3][i] - (float)(4 + i % 4)) < 1e-5f, "mean of v");
  }
  operands.out = buffers[2];
  expect(metal_sdpa_sdpa(device, &problem, &operands) == METAL_SDPA_INVALID_ARGUMENT, "status");
  expect(strstr(metal_sdpa_last_message(), "read-only") != NULL, "message");
  expect(released == 0, "released too early");
  for (i = 0; i < 4; ++i) metal_sdpa_buffer_release(buffers[i]);
  expect(released == 4, "never released");
  metal_sdpa_device_close(device);
  printf("C consumer: ok, metal_sdpa %s\n", metal_sdpa_version());
  return 0;
}
