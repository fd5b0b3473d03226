/*
 * The few functions of libzstd that are used, found when the library is first needed. Floor 1; the
 * only user of zstd. Any thread may load; a decoder belongs to one thread at a time. Decoding
 * allocates nothing after open.
 */
#ifndef LR_ZSTD_DL_H
#define LR_ZSTD_DL_H

#include <stddef.h>
#include <stdint.h>

typedef struct lr_zstd lr_zstd;

/* 0, or LR_ERR_NO_ZSTD. Cheap after the first call. */
int lr_zstd_load(void);
int lr_zstd_open(lr_zstd **ret_zstd);
void lr_zstd_close(lr_zstd *zstd);
/* Have the memory that decoding takes now, before it is used. Where zstd does not tell how much
 * that is (before 1.4.0) nothing is done. */
void lr_zstd_have(lr_zstd *zstd);
/* Decode one frame that must fill exactly `bytes`: 0, or LR_ERR_FRAME. */
int lr_zstd_decode(lr_zstd *zstd, const void *frame, size_t frame_bytes, void *ret_data,
		   size_t bytes);

#endif
