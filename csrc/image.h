/*
 * An open image, and decoders that hand out its clusters' bytes. Floor 3.
 * struct lr_image is immutable after open and shared by all threads; a struct lr_decoder belongs to
 * one at a time.
 */
#ifndef LR_IMAGE_H
#define LR_IMAGE_H

#include <stdatomic.h>

#include "index.h"
#include "zstd_dl.h"

struct lr_image {
	_Atomic uint32_t users; /* the opener, readers and sessions; freed with the last */
	struct lr_source source;
	struct lr_index index;
	struct lr_image_info info;
	uint8_t *root; /* the root's payload, owned: region table and names are read from it */
	uint32_t root_bytes;
};

/* Become a user of an image; the partner of lr_image_close. */
void lr_image_hold(const struct lr_image *image);
/* Number of a region's pages in one of its clusters. */
uint32_t lr_image_pages_in_cluster(const struct lr_image *image,
				   const struct lr_region_info *region, uint64_t cluster);
/* The region that a cluster belongs to: its number, or LR_ERR_ARGUMENT. */
int64_t lr_image_region_of_cluster(const struct lr_image *image, uint64_t cluster);

struct lr_decoder {
	const struct lr_image *image;
	lr_zstd *zstd;
	struct lr_index_cache cache;
	uint8_t *buffers;            /* one mapping: stored bytes, then data */
	uint8_t *stored;             /* cluster_size bytes */
	uint8_t *data;               /* cluster_size bytes */
	struct lr_cluster_info info; /* of the cluster last looked up */
	uint32_t tail_bytes;         /* of its last page, past the end of its region */
	uint64_t decoded_cluster;    /* whose data pages `data` holds, or LR_NOWHERE */
	uint64_t clusters_decoded;
	uint64_t payload_bytes_read;
};

int lr_decoder_open(struct lr_decoder *decoder, const struct lr_image *image);
void lr_decoder_close(struct lr_decoder *decoder);
/* Fill decoder->info. The cluster must belong to `region`. */
int lr_decoder_find(struct lr_decoder *decoder, const struct lr_region_info *region,
		    uint64_t cluster, struct lr_problem *ret_problem);
/* Fill decoder->data with the data pages of the cluster found last. Checksummed before decoding;
 * nothing is decoded twice in a row. Past the end of the region is zero, whatever is stored. */
int lr_decoder_decode(struct lr_decoder *decoder, struct lr_problem *ret_problem);

#endif
