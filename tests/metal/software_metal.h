/* Control of the software Metal device: seeds, validation reports, faults, counts.
 *
 * Plain C, callable from any thread, exported from whatever binary holds the device (a program, or
 * a shared library that Python opens with ctypes). Strings stay valid until the next call of the
 * same function on the same thread. */
#ifndef SOFTWARE_METAL_H
#define SOFTWARE_METAL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ----- Shuffling. The same seed gives the same order of threads, threadgroups and concurrent
 * dispatches. Initially SOFTWARE_METAL_SEED from the environment (a number, or "random"; it is then
 * printed on standard error), else 1. */
void software_metal_set_seed(uint64_t seed);
uint64_t software_metal_seed(void);

/* ----- Validation. A use that Metal forbids prints a report and aborts; in record mode it is kept
 * for the calls below, the offending call has no effect, and a dispatch that went wrong fails its
 * command buffer. SOFTWARE_METAL_VALIDATION=record in the environment starts in record mode. */
enum { SOFTWARE_METAL_FATAL = 0, SOFTWARE_METAL_RECORD = 1 };
void software_metal_set_validation(int mode);
int software_metal_violation_count(void);
/* Text of report `index`, or NULL past the last. */
const char* software_metal_violation(int index);
void software_metal_clear_violations(void);

/* ----- Faults. Each is one-shot unless it says otherwise. */
/* The n-th buffer allocation from now (0: the next one) returns nil. */
void software_metal_fail_allocation(int n);
/* The next newLibrary call fails with `message` as the compiler's log. */
void software_metal_fail_library(const char* message);
/* Functions of this name are missing from every library until the next call; NULL: none. */
void software_metal_hide_function(const char* name);
/* The next pipeline state cannot be made; `message` becomes the error's text. */
void software_metal_fail_pipeline(const char* message);
/* The n-th command buffer to run from now (0: the next one) executes nothing and ends in error. */
void software_metal_fail_command_buffer(int n, long code, const char* text);
/* Nonzero: MTLCreateSystemDefaultDevice returns nil from now on. */
void software_metal_set_device_absent(int absent);
/* Every command buffer waits this long before it runs: brings out missing waits. */
void software_metal_set_delay_us(unsigned microseconds);
/* Drops every fault above. */
void software_metal_clear_faults(void);

/* ----- Counts */
/* Objects alive of a class such as "MTLBuffer"; NULL: of every class. */
long software_metal_live_objects(const char* class_name);
/* "MTLBuffer 2, NSString 1"; "" where nothing is alive. */
const char* software_metal_live_report(void);

enum {
  SOFTWARE_METAL_DISPATCHES = 0,       /* dispatches executed */
  SOFTWARE_METAL_BARRIERS = 1,         /* memory barriers encoded */
  SOFTWARE_METAL_COMMAND_BUFFERS = 2,  /* command buffers executed */
  SOFTWARE_METAL_COMPILES = 3,         /* runs of the shader compiler (a cache hit is none) */
  SOFTWARE_METAL_ENCODERS = 4,         /* compute encoders made */
  SOFTWARE_METAL_LIBRARIES = 5,        /* libraries made */
  SOFTWARE_METAL_PIPELINES = 6,        /* pipeline states made */
  SOFTWARE_METAL_THREADGROUPS = 7      /* threadgroups executed */
};
/* Since the start or the last software_metal_reset_counts. */
uint64_t software_metal_count(int what);
void software_metal_reset_counts(void);

/* Waits until no command buffer is in flight. */
void software_metal_wait(void);

/* Waits until nothing is in flight, then puts seed, validation mode, faults and counts back. */
void software_metal_reset(void);

#ifdef __cplusplus
}
#endif

#endif
