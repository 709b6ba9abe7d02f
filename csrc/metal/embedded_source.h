// The flattened shader source, written into a .cpp file by tools/flatten_shaders.py at build time.
#pragma once

namespace metal_sdpa {

/// All of shaders/*.metal with their includes inlined, and the SHA-256 of that text in hex.
extern const char* const kEmbeddedShaderSource;
extern const char* const kEmbeddedShaderSha256;

}  // namespace metal_sdpa
