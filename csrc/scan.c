#include "scan.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>

/* Looked at before asking whether anything was there: long enough for the compiler to make vectors
 * of it, short enough that a page of data, which mostly shows itself in its first bytes, costs next
 * to nothing. */
#define BLOCK_BYTES 256u
#define BLOCK_WORDS (BLOCK_BYTES / sizeof(uint64_t))

static bool is_zero_block(const uint8_t *data)
{
	uint64_t words[BLOCK_WORDS], any = 0;

	memcpy(words, data, BLOCK_BYTES); /* data may lie anywhere; this costs no copy */
	for (unsigned i = 0; i < BLOCK_WORDS; i++)
		any |= words[i];
	return any == 0;
}

bool lr_scan_is_zero(const void *data, uint64_t bytes)
{
	const uint8_t *at = data;
	uint8_t any = 0;

	for (; bytes >= BLOCK_BYTES; at += BLOCK_BYTES, bytes -= BLOCK_BYTES)
		if (!is_zero_block(at))
			return false;
	for (; bytes > 0; at++, bytes--)
		any |= *at;
	return any == 0;
}

uint64_t lr_scan_pages(const void *data, uint64_t bytes, uint32_t page_size, uint8_t *ret_states)
{
	const uint8_t *at = data;
	uint64_t data_pages = 0;

	assert(page_size > 0);
	for (uint64_t page = 0; bytes > 0; page++) {
		uint64_t length = bytes < page_size ? bytes : page_size;
		bool is_zero = lr_scan_is_zero(at, length);
		ret_states[page] = is_zero ? LR_PAGE_ZERO : LR_PAGE_DATA;
		data_pages += !is_zero;
		at += length;
		bytes -= length;
	}
	return data_pages;
}

uint64_t lr_gather_pages(const void *data, uint64_t bytes, uint32_t page_size,
			 const uint8_t *states, void *ret_data)
{
	const uint8_t *at = data;
	uint8_t *out = ret_data;

	assert(page_size > 0);
	for (uint64_t page = 0; bytes > 0; page++) {
		uint64_t length = bytes < page_size ? bytes : page_size;
		if (states[page] == LR_PAGE_DATA) {
			memcpy(out, at, length);
			memset(out + length, 0, page_size - length);
			out += page_size;
		}
		at += length;
		bytes -= length;
	}
	return (uint64_t)(out - (uint8_t *)ret_data);
}
