// Names of CoreFoundation that metal-cpp mentions.
#pragma once
#include <TargetConditionals.h>

typedef double CFTimeInterval;
typedef const void* CFTypeRef;
typedef unsigned int UInt32;
