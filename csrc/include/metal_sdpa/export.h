// Symbol visibility: everything is hidden but what carries METAL_SDPA_API.
#pragma once

#define METAL_SDPA_API __attribute__((visibility("default")))
