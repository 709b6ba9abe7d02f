// Everything of the public interface.
#pragma once

#include "metal_sdpa/buffer.h"
#include "metal_sdpa/device.h"
#include "metal_sdpa/dtype.h"
#include "metal_sdpa/encoder.h"
#include "metal_sdpa/error.h"
#include "metal_sdpa/graph.h"
#include "metal_sdpa/kernel_registry.h"
#include "metal_sdpa/merge_states.h"
#include "metal_sdpa/native_kernel.h"
#include "metal_sdpa/plan.h"
#include "metal_sdpa/prepared.h"
#include "metal_sdpa/sdpa.h"
#include "metal_sdpa/support.h"
#include "metal_sdpa/version.h"
#include "metal_sdpa/write_kv.h"
