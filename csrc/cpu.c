#include "cpu.h"

#include <stdatomic.h>

#define IS_KNOWN (1u << 31)

#if defined(__x86_64__)

#include <cpuid.h>
#include <stdint.h>

/* Bits of XCR0: which registers the kernel saves. */
#define STATE_AVX    0x06u
#define STATE_AVX512 0xe6u

static unsigned saved_state(void)
{
	uint32_t low, high;

	__asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return low;
}

static unsigned look(void)
{
	unsigned a, b, c, d, found = 0, saved = 0;

	if (!__get_cpuid(1, &a, &b, &c, &d))
		return 0;
	if (c & bit_SSE4_2)
		found |= LR_CPU_CRC32C;
	if (c & bit_OSXSAVE)
		saved = saved_state();
	if ((saved & STATE_AVX) != STATE_AVX || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
		return found;
	if (b & bit_AVX2)
		found |= LR_CPU_AVX2;
	if ((saved & STATE_AVX512) == STATE_AVX512 && (b & bit_AVX512F) && (b & bit_AVX512VL))
		found |= LR_CPU_AVX512;
	return found;
}

#elif defined(__aarch64__)

#include <sys/auxv.h>

#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif

static unsigned look(void)
{
	/* The first ARMv8 processors need not have it. */
	return getauxval(AT_HWCAP) & HWCAP_CRC32 ? LR_CPU_CRC32C : 0;
}

#else

static unsigned look(void)
{
	return 0;
}

#endif

bool lr_cpu_has(unsigned features)
{
	/* Nothing depends on it, and whoever is second finds the same. */
	static atomic_uint known;
	unsigned found = atomic_load_explicit(&known, memory_order_relaxed);

	if (!found) {
		found = look() | IS_KNOWN;
		atomic_store_explicit(&known, found, memory_order_relaxed);
	}
	return (found & features) == features;
}
