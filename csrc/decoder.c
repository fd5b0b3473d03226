/* Decoders: one thread's means of turning a cluster's number into its bytes. All memory is had at
 * open. */
#include <string.h>

#include "image.h"
#include "reserve.h"

int lr_decoder_open(struct lr_decoder *decoder, const struct lr_image *image)
{
	size_t cluster_size = image->info.cluster_size;
	int code;

	memset(decoder, 0, sizeof(*decoder));
	decoder->image = image;
	decoder->decoded_cluster = LR_NOWHERE;
	decoder->info.cluster = LR_NOWHERE;
	code = lr_zstd_open(&decoder->zstd);
	if (code == LR_OK)
		code = lr_index_cache_open(&decoder->cache, &image->index);
	if (code == LR_OK) {
		decoder->buffers = lr_buffer_take(2 * cluster_size);
		code = decoder->buffers ? LR_OK : LR_ERR_NOMEM;
	}
	if (code < 0) {
		lr_decoder_close(decoder);
		return code;
	}
	decoder->stored = decoder->buffers;
	decoder->data = decoder->buffers + cluster_size;
	return LR_OK;
}

void lr_decoder_close(struct lr_decoder *decoder)
{
	if (decoder->buffers)
		lr_buffer_give(decoder->buffers, 2 * (size_t)decoder->image->info.cluster_size);
	decoder->buffers = NULL;
	lr_index_cache_close(&decoder->cache);
	lr_zstd_close(decoder->zstd);
	decoder->zstd = NULL;
}

int lr_decoder_find(struct lr_decoder *decoder, const struct lr_region_info *region,
		    uint64_t cluster, struct lr_problem *ret_problem)
{
	const struct lr_image_info *info = &decoder->image->info;
	uint32_t pages = lr_image_pages_in_cluster(decoder->image, region, cluster);
	uint64_t begin = (cluster - region->first_cluster) * info->cluster_size;
	uint64_t end = begin + (uint64_t)pages * info->page_size;
	int code;

	if (decoder->info.cluster == cluster)
		return LR_OK;
	code = lr_index_find(&decoder->image->index, &decoder->cache, cluster, pages,
			     &decoder->info, ret_problem);
	if (code == LR_OK)
		decoder->tail_bytes = end > region->length ? (uint32_t)(end - region->length) : 0;
	return code;
}

/* A lazily restored page is whole: what the image says of bytes past the end of the region must not
 * come into memory with it. */
static void clear_tail(struct lr_decoder *decoder, size_t data_bytes)
{
	const struct lr_cluster_info *info = &decoder->info;

	if (decoder->tail_bytes && lr_states_get(info->states, info->pages - 1) == LR_PAGE_DATA)
		memset(decoder->data + data_bytes - decoder->tail_bytes, 0, decoder->tail_bytes);
}

/* Turn the payload that was read into data pages. One with planes was read to where the data goes,
 * is decoded into the other buffer, and comes back as numbers: so no third one is needed. */
static int decode(struct lr_decoder *decoder, const uint8_t *stored, size_t data_bytes)
{
	const struct lr_cluster_info *info = &decoder->info;
	uint8_t *to = info->planes ? decoder->stored : decoder->data;
	int code = lr_zstd_decode(decoder->zstd, stored, info->payload_bytes, to, data_bytes);

	if (code == LR_OK && info->planes)
		lr_planes_join(to, data_bytes, info->planes, decoder->data);
	return code;
}

int lr_decoder_decode(struct lr_decoder *decoder, struct lr_problem *ret_problem)
{
	const struct lr_cluster_info *info = &decoder->info;
	size_t data_bytes = (size_t)info->data_pages * decoder->image->info.page_size;
	bool raw = info->kind == LR_CLUSTER_RAW;
	uint8_t *stored = raw || info->planes ? decoder->data : decoder->stored;
	int code;

	if (decoder->decoded_cluster == info->cluster || data_bytes == 0)
		return LR_OK;
	decoder->decoded_cluster = LR_NOWHERE;
	code = lr_source_read(&decoder->image->source, info->payload_offset, stored,
			      info->payload_bytes, ret_problem);
	if (code < 0) {
		if (ret_problem)
			ret_problem->cluster = info->cluster;
		return code;
	}
	decoder->payload_bytes_read += info->payload_bytes;
	if (lr_crc32c(0, stored, info->payload_bytes) != info->crc32c)
		return lr_problem_set(ret_problem, LR_ERR_CHECKSUM, 0, info->cluster,
				      info->payload_offset);
	if (!raw) {
		code = decode(decoder, stored, data_bytes);
		if (code < 0)
			return lr_problem_set(ret_problem, code, 0, info->cluster,
					      info->payload_offset);
	}
	clear_tail(decoder, data_bytes);
	decoder->decoded_cluster = info->cluster;
	decoder->clusters_decoded++;
	return LR_OK;
}
