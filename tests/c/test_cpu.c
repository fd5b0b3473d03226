#include "check.h"

#include <stdio.h>

#include "cpu.h"

/* Whether the kernel lists a feature of the first processor: what it does not save is not there. */
static bool is_listed(const char *name)
{
	static char line[16384];
	FILE *file = fopen("/proc/cpuinfo", "re");
	bool is_found = false;

	CHECK(file);
	while (!is_found && fgets(line, sizeof(line), file)) {
		if (strncmp(line, "flags", 5) != 0 && strncmp(line, "Features", 8) != 0)
			continue;
		for (char *word = strtok(line, " \t\n"); word; word = strtok(NULL, " \t\n"))
			is_found |= strcmp(word, name) == 0;
		break;
	}
	fclose(file);
	return is_found;
}

static void finds_what_the_kernel_lists(void)
{
#if defined(__x86_64__)
	CHECK_EQ(lr_cpu_has(LR_CPU_CRC32C), is_listed("sse4_2"));
	CHECK_EQ(lr_cpu_has(LR_CPU_AVX2), is_listed("avx2"));
	CHECK_EQ(lr_cpu_has(LR_CPU_AVX512), is_listed("avx512f") && is_listed("avx512vl"));
#elif defined(__aarch64__)
	CHECK_EQ(lr_cpu_has(LR_CPU_CRC32C), is_listed("crc32"));
	CHECK(!lr_cpu_has(LR_CPU_AVX2));
#endif
}

static void has_all_or_says_no(void)
{
	unsigned all = LR_CPU_CRC32C | LR_CPU_AVX2 | LR_CPU_AVX512;

	CHECK(lr_cpu_has(0));
	CHECK_EQ(lr_cpu_has(all),
		 lr_cpu_has(LR_CPU_CRC32C) && lr_cpu_has(LR_CPU_AVX2) && lr_cpu_has(LR_CPU_AVX512));
	CHECK(!lr_cpu_has(1u << 20));
}

static const struct check_case cases[] = {
	CHECK_CASE(finds_what_the_kernel_lists),
	CHECK_CASE(has_all_or_says_no),
};
CHECK_MAIN(cases)
