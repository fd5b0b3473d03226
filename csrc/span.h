/*
 * Bounds-checked reads of untrusted little-endian bytes. Floor 1. The only place where bytes of a
 * file become numbers: a read outside the span gives 0 and marks the span bad, so a caller may read
 * all fields and ask once.
 */
#ifndef LR_SPAN_H
#define LR_SPAN_H

#include <stdbool.h>
#include <stdint.h>

struct lr_span {
	const uint8_t *data;
	uint64_t bytes;
	bool bad;
};

static inline struct lr_span lr_span_of(const void *data, uint64_t bytes)
{
	return (struct lr_span){.data = data, .bytes = bytes, .bad = false};
}

/* True if [offset, offset + bytes) lies within [0, limit), computed without overflow. */
static inline bool lr_span_fits(uint64_t offset, uint64_t bytes, uint64_t limit)
{
	return offset <= limit && bytes <= limit - offset;
}

static inline uint64_t lr_span_get(struct lr_span *span, uint64_t offset, unsigned width_bytes)
{
	uint64_t value = 0;

	if (!lr_span_fits(offset, width_bytes, span->bytes)) {
		span->bad = true;
		return 0;
	}
	for (unsigned i = 0; i < width_bytes; i++)
		value |= (uint64_t)span->data[offset + i] << (8 * i);
	return value;
}

static inline uint8_t lr_span_u8(struct lr_span *span, uint64_t offset)
{
	return (uint8_t)lr_span_get(span, offset, 1);
}

static inline uint32_t lr_span_u32(struct lr_span *span, uint64_t offset)
{
	return (uint32_t)lr_span_get(span, offset, 4);
}

static inline uint64_t lr_span_u64(struct lr_span *span, uint64_t offset)
{
	return lr_span_get(span, offset, 8);
}

/* True if all bytes of [offset, offset + bytes) are there and zero: what reserved fields must be.
 */
static inline bool lr_span_is_zero(struct lr_span *span, uint64_t offset, uint64_t bytes)
{
	uint8_t any = 0;

	if (!lr_span_fits(offset, bytes, span->bytes)) {
		span->bad = true;
		return false;
	}
	for (uint64_t i = 0; i < bytes; i++)
		any |= span->data[offset + i];
	return any == 0;
}

#endif
