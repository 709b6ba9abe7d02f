// metal-cpp includes this header and uses nothing of it.
#pragma once
#include <cstdint>
