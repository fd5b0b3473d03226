/*
 * Sixteen numbers at a time, in vectors of 16 bytes, one of each plane. Taken together these are
 * width × 16 bytes, whose places are numbers of 4 + log2(width) bits: the plane first, then the
 * number. Interleaving the first half of all vectors with the second half turns these bits round by
 * one, as when a pack of cards is shuffled perfectly; so after log2(width) times the bits of the
 * plane come last, which is the order in memory. Splitting goes the other way.
 *
 * The compiler makes of each interleaving two instructions of the machine (punpcklbw and punpckhbw,
 * zip1 and zip2), which every x86-64 and every aarch64 has.
 */
#include "planes.h"

#include <assert.h>
#include <string.h>

#include "lazyrestore.h"

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define HAS_VECTORS 1
#endif
#endif

#define VECTOR_BYTES 16u

/* From number `at` on, byte by byte: what is left behind the last whole vectors. */
static void join_rest(const uint8_t *planes, size_t count, uint32_t width, size_t at,
		      uint8_t *ret_data)
{
	for (; at < count; at++)
		for (uint32_t plane = 0; plane < width; plane++)
			ret_data[at * width + plane] = planes[plane * count + at];
}

static void split_rest(const uint8_t *data, size_t count, uint32_t width, size_t at,
		       uint8_t *ret_planes)
{
	for (; at < count; at++)
		for (uint32_t plane = 0; plane < width; plane++)
			ret_planes[plane * count + at] = data[at * width + plane];
}

#ifdef HAS_VECTORS

typedef uint8_t vector __attribute__((vector_size(VECTOR_BYTES)));

#define INTERLEAVE_LOW(a, b)                                                                       \
	__builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define INTERLEAVE_HIGH(a, b)                                                                      \
	__builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#define EVEN_BYTES(a, b)                                                                           \
	__builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define ODD_BYTES(a, b)                                                                            \
	__builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)

/* Inlined with each width as a constant, so that the loops are unrolled and the vectors stay in
 * registers. gcc has to be told; clang does it by itself, and too late if it is told. */
#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLLED
#else
#define UNROLLED _Pragma("GCC unroll 8")
#endif

/* The two halves of some vectors, interleaved. */
INLINE void interleave(vector *vectors, const uint32_t count)
{
	vector to[8];

	UNROLLED
	for (uint32_t k = 0; k < count / 2; k++) {
		to[2 * k] = INTERLEAVE_LOW(vectors[k], vectors[k + count / 2]);
		to[2 * k + 1] = INTERLEAVE_HIGH(vectors[k], vectors[k + count / 2]);
	}
	UNROLLED
	for (uint32_t k = 0; k < count; k++)
		vectors[k] = to[k];
}

/* The way back: even bytes to the first half, odd ones to the second. */
INLINE void part(vector *vectors, const uint32_t count)
{
	vector to[8];

	UNROLLED
	for (uint32_t k = 0; k < count / 2; k++) {
		to[k] = EVEN_BYTES(vectors[2 * k], vectors[2 * k + 1]);
		to[k + count / 2] = ODD_BYTES(vectors[2 * k], vectors[2 * k + 1]);
	}
	UNROLLED
	for (uint32_t k = 0; k < count; k++)
		vectors[k] = to[k];
}

INLINE size_t join_vectors(const uint8_t *planes, size_t count, const uint32_t width,
			   uint8_t *ret_data)
{
	size_t at = 0;

	for (; count - at >= VECTOR_BYTES; at += VECTOR_BYTES) {
		vector vectors[8];

		UNROLLED
		for (uint32_t k = 0; k < width; k++)
			memcpy(&vectors[k], planes + k * count + at, VECTOR_BYTES);
		interleave(vectors, width);
		if (width >= 4)
			interleave(vectors, width);
		if (width == 8)
			interleave(vectors, width);
		UNROLLED
		for (uint32_t k = 0; k < width; k++)
			memcpy(ret_data + at * width + k * VECTOR_BYTES, &vectors[k], VECTOR_BYTES);
	}
	return at;
}

INLINE size_t split_vectors(const uint8_t *data, size_t count, const uint32_t width,
			    uint8_t *ret_planes)
{
	size_t at = 0;

	for (; count - at >= VECTOR_BYTES; at += VECTOR_BYTES) {
		vector vectors[8];

		UNROLLED
		for (uint32_t k = 0; k < width; k++)
			memcpy(&vectors[k], data + at * width + k * VECTOR_BYTES, VECTOR_BYTES);
		part(vectors, width);
		if (width >= 4)
			part(vectors, width);
		if (width == 8)
			part(vectors, width);
		UNROLLED
		for (uint32_t k = 0; k < width; k++)
			memcpy(ret_planes + k * count + at, &vectors[k], VECTOR_BYTES);
	}
	return at;
}

#else /* a compiler without them */

static size_t join_vectors(const uint8_t *planes, size_t count, uint32_t width, uint8_t *ret_data)
{
	(void)planes, (void)count, (void)width, (void)ret_data;
	return 0;
}

static size_t split_vectors(const uint8_t *data, size_t count, uint32_t width, uint8_t *ret_planes)
{
	(void)data, (void)count, (void)width, (void)ret_planes;
	return 0;
}

#endif

void lr_planes_join(const void *planes, uint64_t bytes, uint32_t width_bytes, void *ret_data)
{
	size_t count = bytes / width_bytes, at;

	assert(lr_planes_is_width(width_bytes) && bytes % width_bytes == 0);
	if (width_bytes == 2)
		at = join_vectors(planes, count, 2, ret_data);
	else if (width_bytes == 4)
		at = join_vectors(planes, count, 4, ret_data);
	else
		at = join_vectors(planes, count, 8, ret_data);
	join_rest(planes, count, width_bytes, at, ret_data);
}

void lr_planes_split(const void *data, uint64_t bytes, uint32_t width_bytes, void *ret_planes)
{
	size_t count = bytes / width_bytes, at;

	assert(lr_planes_is_width(width_bytes) && bytes % width_bytes == 0);
	if (width_bytes == 2)
		at = split_vectors(data, count, 2, ret_planes);
	else if (width_bytes == 4)
		at = split_vectors(data, count, 4, ret_planes);
	else
		at = split_vectors(data, count, 8, ret_planes);
	split_rest(data, count, width_bytes, at, ret_planes);
}
