/*
 * BLAKE3, the hash of the format's digests: https://github.com/BLAKE3-team/BLAKE3-specs. Chunks of
 * 1 KiB are the leaves of a binary tree, and those of one input are hashed side by side, as many as
 * this machine's vectors have elements.
 */
#include "blake3.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>

#include "blake3_round.h"
#include "cpu.h"

#if defined(__has_builtin) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#if __has_builtin(__builtin_shufflevector)
#define HAS_VECTORS 1
#endif
#endif

#define VALUE_BYTES 32u
/* How many chunks become one value of the tree at once. */
#define GROUP 64u

static uint32_t get_word(const uint8_t *from)
{
	return from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

static void put_word(uint8_t *to, uint32_t word)
{
	for (unsigned i = 0; i < 4; i++)
		to[i] = (uint8_t)(word >> (8 * i));
}

/* ---- One block ---- */

static void compress(uint32_t h[8], const uint8_t *block, unsigned bytes, uint64_t counter,
		     uint32_t flags)
{
	uint32_t v[16], m[16];

	for (unsigned i = 0; i < 16; i++)
		m[i] = get_word(block + 4 * i);
	memcpy(v, h, 32);
	memcpy(v + 8, initial, 16);
	v[12] = (uint32_t)counter;
	v[13] = (uint32_t)(counter >> 32);
	v[14] = bytes;
	v[15] = flags;
	for (unsigned round = 0; round < ROUNDS; round++)
		ROUND(v, m, schedule[round]);
	for (unsigned i = 0; i < 8; i++)
		h[i] = v[i] ^ v[i + 8];
}

/* Two values, one behind the other, become one. */
static void merge(const uint8_t *two, uint32_t flags, uint8_t *ret_value)
{
	uint32_t h[8];

	memcpy(h, initial, sizeof(h));
	compress(h, two, BLOCK_BYTES, 0, PARENT | flags);
	for (unsigned i = 0; i < 8; i++)
		put_word(ret_value + 4 * i, h[i]);
}

/* A chunk by itself; the only one that may be short, and the only one of a short input. */
static void hash_chunk(const uint8_t *data, uint64_t bytes, uint64_t counter, uint32_t flags,
		       uint8_t *ret_value)
{
	uint32_t h[8], start = CHUNK_START;
	uint8_t last[BLOCK_BYTES] = {0};

	memcpy(h, initial, sizeof(h));
	for (; bytes > BLOCK_BYTES; data += BLOCK_BYTES, bytes -= BLOCK_BYTES, start = 0)
		compress(h, data, BLOCK_BYTES, counter, start);
	if (bytes > 0)
		memcpy(last, data, bytes);
	compress(h, last, (unsigned)bytes, counter, start | CHUNK_END | flags);
	for (unsigned i = 0; i < 8; i++)
		put_word(ret_value + 4 * i, h[i]);
}

/* ---- Many blocks side by side ---- */

#ifdef HAS_VECTORS
#define LANES 4
#define LOW   0, 4, 1, 5
#define HIGH  2, 6, 3, 7
#define TARGET
#define NAME(x) x##_4
#include "blake3_lanes.h"

#if defined(__x86_64__)
#define LANES   8
#define LOW     0, 8, 1, 9, 2, 10, 3, 11
#define HIGH    4, 12, 5, 13, 6, 14, 7, 15
#define TARGET  __attribute__((target("avx2")))
#define NAME(x) x##_8
#include "blake3_lanes.h"

#define LANES   16
#define LOW     0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH    8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define TARGET  __attribute__((target("avx512f,avx512vl")))
#define NAME(x) x##_16
#include "blake3_lanes.h"
#endif
#endif

unsigned lr_blake3_ways(unsigned ret_lanes[LR_BLAKE3_WAYS_MAX])
{
	unsigned count = 0;

	ret_lanes[count++] = 1;
#ifdef HAS_VECTORS
	ret_lanes[count++] = 4;
#if defined(__x86_64__)
	if (lr_cpu_has(LR_CPU_AVX2))
		ret_lanes[count++] = 8;
	if (lr_cpu_has(LR_CPU_AVX512))
		ret_lanes[count++] = 16;
#endif
#endif
	return count;
}

typedef void hash_lanes(const uint8_t *const inputs[], unsigned blocks, uint64_t counter,
			unsigned step, const uint32_t flags[3], uint8_t *ret_values);

static hash_lanes *by_lanes(unsigned lanes)
{
	switch (lanes) {
#ifdef HAS_VECTORS
	case 4:
		return hash_4;
#if defined(__x86_64__)
	case 8:
		return hash_8;
	case 16:
		return hash_16;
#endif
#endif
	default:
		return NULL;
	}
}

/* `count` inputs, each `stride` bytes behind the one before, become as many values. Of fewer than
 * there are lanes, the rest are the first once more. */
static void hash_all(const uint8_t *data, unsigned count, unsigned stride, uint64_t counter,
		     unsigned step, const uint32_t flags[3], unsigned lanes, uint8_t *ret_values)
{
	hash_lanes *hash = by_lanes(lanes);
	uint8_t values[16 * VALUE_BYTES];
	const uint8_t *inputs[16];

	assert(hash && lanes <= 16);
	for (unsigned at = 0; at < count; at += lanes) {
		unsigned here = count - at < lanes ? count - at : lanes;

		for (unsigned i = 0; i < lanes; i++)
			inputs[i] = data + (size_t)stride * (at + (i < here ? i : 0));
		hash(inputs, stride / BLOCK_BYTES, counter + (uint64_t)at * step, step, flags,
		     values);
		memcpy(ret_values + (size_t)VALUE_BYTES * at, values, (size_t)VALUE_BYTES * here);
	}
}

/* ---- Trees ---- */

/* Values of the tree, of the first `count` chunks. */
static void hash_chunks(const uint8_t *data, unsigned count, uint64_t counter, unsigned lanes,
			uint8_t *ret_values)
{
	static const uint32_t flags[3] = {CHUNK_START, 0, CHUNK_END};

	/* Wide vectors that are mostly empty take longer than what they save. */
	if (lanes > 1 && count > 1) {
		hash_all(data, count, CHUNK_BYTES, counter, 1, flags, lanes, ret_values);
		return;
	}
	for (unsigned i = 0; i < count; i++)
		hash_chunk(data + (size_t)CHUNK_BYTES * i, CHUNK_BYTES, counter + i, 0,
			   ret_values + (size_t)VALUE_BYTES * i);
}

/* A level of the tree becomes the one above it: a last value that has no partner goes up as it is.
 * `values` may not overlap with the result. */
static unsigned merge_level(const uint8_t *values, unsigned count, unsigned lanes,
			    uint8_t *ret_values)
{
	static const uint32_t flags[3] = {0, PARENT, 0};
	unsigned pairs = count / 2;

	if (lanes > 1 && pairs > 1)
		hash_all(values, pairs, BLOCK_BYTES, 0, 0, flags, lanes, ret_values);
	else
		for (unsigned i = 0; i < pairs; i++)
			merge(values + (size_t)BLOCK_BYTES * i, 0,
			      ret_values + (size_t)VALUE_BYTES * i);
	if (count % 2)
		memcpy(ret_values + (size_t)VALUE_BYTES * pairs,
		       values + (size_t)VALUE_BYTES * (count - 1), VALUE_BYTES);
	return pairs + count % 2;
}

/* Up to GROUP chunks, of which the last may be short, become one value, or the digest if they are
 * all that there is. */
static void hash_group(const uint8_t *data, uint64_t bytes, uint64_t counter, bool is_all,
		       unsigned lanes, uint8_t *ret_value)
{
	uint8_t levels[2][GROUP * VALUE_BYTES];
	unsigned whole = (unsigned)(bytes / CHUNK_BYTES), count = whole, level = 0;
	uint64_t rest = bytes % CHUNK_BYTES;
	uint32_t root = is_all ? ROOT : 0;

	if (bytes <= CHUNK_BYTES) {
		hash_chunk(data, bytes, counter, root, ret_value);
		return;
	}
	hash_chunks(data, whole, counter, lanes, levels[0]);
	if (rest)
		hash_chunk(data + (bytes - rest), rest, counter + whole, 0,
			   levels[0] + (size_t)VALUE_BYTES * count++);
	for (; count > 2; level ^= 1)
		count = merge_level(levels[level], count, lanes, levels[level ^ 1]);
	merge(levels[level], root, ret_value);
}

/* The values that wait for a partner: bit i of `groups`, how many there were before, says whether
 * there is one of 2^i groups. A new one is merged with those that it completes. */
static unsigned push(uint8_t *stack, unsigned depth, uint64_t groups)
{
	for (; groups & 1; groups >>= 1, depth--)
		merge(stack + (size_t)VALUE_BYTES * (depth - 1), 0,
		      stack + (size_t)VALUE_BYTES * (depth - 1));
	return depth + 1;
}

/* All that waits becomes one: the digest. */
static void finish(uint8_t *stack, unsigned depth, uint8_t *ret_digest)
{
	for (; depth > 1; depth--)
		merge(stack + (size_t)VALUE_BYTES * (depth - 2), depth == 2 ? ROOT : 0,
		      stack + (size_t)VALUE_BYTES * (depth - 2));
	memcpy(ret_digest, stack, VALUE_BYTES);
}

void lr_blake3_by(unsigned lanes, const void *data, uint64_t bytes, uint8_t *ret_digest)
{
	const uint64_t group_bytes = GROUP * CHUNK_BYTES;
	uint8_t stack[LR_BLAKE3_DEPTH * VALUE_BYTES];
	const uint8_t *at = data;
	uint64_t groups = 0;
	unsigned depth = 0;

	/* The last group, which may be short, is the only one that can be all. */
	for (; bytes > group_bytes; at += group_bytes, bytes -= group_bytes, groups++) {
		hash_group(at, group_bytes, groups * GROUP, false, lanes,
			   stack + (size_t)VALUE_BYTES * depth);
		depth = push(stack, depth, groups);
	}
	hash_group(at, bytes, groups * GROUP, depth == 0, lanes,
		   stack + (size_t)VALUE_BYTES * depth);
	finish(stack, depth + 1, ret_digest);
}

void lr_blake3(const void *data, uint64_t bytes, uint8_t *ret_digest)
{
	unsigned lanes[LR_BLAKE3_WAYS_MAX];
	unsigned ways = lr_blake3_ways(lanes);

	lr_blake3_by(lanes[ways - 1], data, bytes, ret_digest);
}

/* ---- Piece by piece ---- */

void lr_blake3_begin(struct lr_blake3 *hash)
{
	memset(hash, 0, sizeof(*hash));
}

void lr_blake3_update(struct lr_blake3 *hash, const void *data, uint64_t bytes)
{
	const uint8_t *at = data;

	while (bytes > 0) {
		uint64_t room = CHUNK_BYTES - hash->chunk_bytes;
		uint64_t part = bytes < room ? bytes : room;

		/* A chunk that is full is the last until there is more. */
		if (room == 0) {
			hash_chunk(hash->chunk, CHUNK_BYTES, hash->chunks, 0,
				   hash->stack + (size_t)VALUE_BYTES * hash->depth);
			hash->depth = push(hash->stack, hash->depth, hash->chunks);
			hash->chunks++;
			hash->chunk_bytes = 0;
			continue;
		}
		memcpy(hash->chunk + hash->chunk_bytes, at, part);
		hash->chunk_bytes += (uint32_t)part;
		at += part;
		bytes -= part;
	}
}

void lr_blake3_get(const struct lr_blake3 *hash, uint8_t *ret_digest)
{
	uint8_t stack[LR_BLAKE3_DEPTH * VALUE_BYTES];

	memcpy(stack, hash->stack, (size_t)VALUE_BYTES * hash->depth);
	hash_chunk(hash->chunk, hash->chunk_bytes, hash->chunks, hash->depth == 0 ? ROOT : 0,
		   stack + (size_t)VALUE_BYTES * hash->depth);
	finish(stack, hash->depth + 1, ret_digest);
}
