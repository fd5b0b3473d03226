/*
 * What the processor has beyond its architecture's least. Floor 1; any thread, any signal handler:
 * no lock, no allocation.
 *
 * Not the compilers' own __builtin_cpu_supports: where clang has no runtime library of its own, as
 * in zig, it says no to everything, and gcc's asks the processor twenty times at start, which costs
 * in a virtual machine, where each is an exit to the hypervisor.
 */
#ifndef LR_CPU_H
#define LR_CPU_H

#include <stdbool.h>

enum lr_cpu_feature {
	LR_CPU_CRC32C = 1, /* instructions for it: SSE4.2, ARMv8's CRC32 */
	LR_CPU_AVX2 = 2,
	LR_CPU_AVX512 = 4, /* F and VL */
};

/* True if the processor and the kernel have all of these, LR_CPU_* or'ed. */
bool lr_cpu_has(unsigned features);

#endif
