// An opaque type that metal-cpp mentions.
#pragma once
typedef struct __IOSurface* IOSurfaceRef;
