/*
 * What a page holds, by its number and the version that was written last: anybody can say what each
 * of its words must be, and no page is like another. Version 0 is a page of zeros.
 * tests/program_support.py knows the same.
 */
#ifndef PAGES_H
#define PAGES_H

#include <stdbool.h>
#include <stdint.h>

#define PAGE_BYTES 4096
#define PAGE_WORDS (PAGE_BYTES / 8)
#define LINE_WORDS 8

/* splitmix64: a permutation. */
static inline uint64_t pages_mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

/* Of eight words one is like noise; the others repeat, as in most memory. */
static inline uint64_t pages_word(uint64_t number, uint64_t version, unsigned index)
{
	uint64_t seed = number << 24 | version;
	unsigned line = index / LINE_WORDS;

	if (version == 0)
		return 0;
	if (index % LINE_WORDS == 0)
		return pages_mix(seed + ((uint64_t)line << 56));
	return seed + line;
}

static inline void pages_write(void *page, uint64_t number, uint64_t version)
{
	volatile uint64_t *words = page;

	for (unsigned i = 0; i < PAGE_WORDS; i++)
		words[i] = pages_word(number, version, i);
}

static inline bool pages_are(const void *page, uint64_t number, uint64_t version)
{
	const volatile uint64_t *words = page;
	uint64_t difference = 0;

	for (unsigned i = 0; i < PAGE_WORDS; i++)
		difference |= words[i] ^ pages_word(number, version, i);
	return difference == 0;
}

#endif
