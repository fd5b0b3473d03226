/* lr_reader: reading an image without userfaultfd. A decoder with a public face. */
#include <stdlib.h>
#include <string.h>

#include "image.h"

struct lr_reader {
	struct lr_decoder decoder;
};

int lr_reader_open(const lr_image *image, lr_reader **ret_reader)
{
	lr_reader *reader = calloc(1, sizeof(*reader));
	int code;

	if (!reader)
		return LR_ERR_NOMEM;
	code = lr_decoder_open(&reader->decoder, image);
	if (code < 0) {
		free(reader);
		return code;
	}
	lr_image_hold(image);
	*ret_reader = reader;
	return LR_OK;
}

void lr_reader_close(lr_reader *reader)
{
	const lr_image *image;

	if (!reader)
		return;
	image = reader->decoder.image;
	lr_decoder_close(&reader->decoder);
	lr_image_close((lr_image *)image);
	free(reader);
}

static int find(lr_reader *reader, uint64_t cluster, struct lr_problem *ret_problem)
{
	const lr_image *image = reader->decoder.image;
	int64_t number = lr_image_region_of_cluster(image, cluster);
	struct lr_region_info region;

	if (number < 0)
		return lr_problem_set(ret_problem, (int)number, 0, cluster, LR_NOWHERE);
	lr_image_get_region(image, (uint32_t)number, &region);
	return lr_decoder_find(&reader->decoder, &region, cluster, ret_problem);
}

int lr_reader_get_cluster(lr_reader *reader, uint64_t cluster, struct lr_cluster_info *ret_info,
			  struct lr_problem *ret_problem)
{
	struct lr_problem problem = {0};
	int code = find(reader, cluster, &problem);

	if (code == LR_OK)
		*ret_info = reader->decoder.info;
	else if (ret_problem)
		*ret_problem = problem;
	return code;
}

int64_t lr_reader_get_data(lr_reader *reader, uint64_t cluster, void *ret_data,
			   struct lr_problem *ret_problem)
{
	struct lr_problem problem = {0};
	struct lr_decoder *decoder = &reader->decoder;
	int code = find(reader, cluster, &problem);
	uint64_t bytes;

	if (code == LR_OK)
		code = lr_decoder_decode(decoder, &problem);
	if (code < 0) {
		if (ret_problem)
			*ret_problem = problem;
		return code;
	}
	bytes = (uint64_t)decoder->info.data_pages * decoder->image->info.page_size;
	memcpy(ret_data, decoder->data, bytes);
	return (int64_t)bytes;
}

/* True if a page of [begin, end), offsets in the cluster found last, is data. Zero pages need no
 * decoding, and can be read where their cluster's data is damaged, as a lazy restore can. */
static bool has_data(const struct lr_decoder *decoder, uint64_t begin, uint64_t end)
{
	uint32_t page_size = decoder->image->info.page_size;

	for (uint64_t page = begin / page_size; page * page_size < end; page++)
		if (lr_states_get(decoder->info.states, (uint32_t)page) == LR_PAGE_DATA)
			return true;
	return false;
}

/* Copy [begin, end), offsets in the cluster found last, to `to`. */
static void copy_from_cluster(const struct lr_decoder *decoder, uint64_t begin, uint64_t end,
			      uint8_t *to, int skip_zeros)
{
	uint32_t page_size = decoder->image->info.page_size;
	const uint8_t *packed = decoder->data;

	for (uint32_t page = 0; (uint64_t)page * page_size < end; page++) {
		uint64_t page_begin = (uint64_t)page * page_size;
		uint64_t from = page_begin > begin ? page_begin : begin;
		uint64_t until = page_begin + page_size < end ? page_begin + page_size : end;
		bool is_data = lr_states_get(decoder->info.states, page) == LR_PAGE_DATA;

		if (from < until && is_data)
			memcpy(to + (from - begin), packed + (from - page_begin), until - from);
		else if (from < until && !skip_zeros)
			memset(to + (from - begin), 0, until - from);
		if (is_data)
			packed += page_size;
	}
}

int lr_reader_read(lr_reader *reader, uint32_t region_number, uint64_t offset, void *ret_data,
		   uint64_t bytes, int skip_zeros, struct lr_problem *ret_problem)
{
	struct lr_decoder *decoder = &reader->decoder;
	uint64_t cluster_size = decoder->image->info.cluster_size;
	struct lr_problem problem = {0};
	struct lr_region_info region;
	uint8_t *to = ret_data;
	int code = lr_image_get_region(decoder->image, region_number, &region);

	if (code < 0)
		return lr_problem_set(ret_problem, code, 0, LR_NOWHERE, LR_NOWHERE);
	if (offset > region.length || bytes > region.length - offset)
		return lr_problem_set(ret_problem, LR_ERR_ARGUMENT, 0, LR_NOWHERE, LR_NOWHERE);
	while (bytes > 0) {
		uint64_t begin = offset % cluster_size;
		uint64_t part = cluster_size - begin < bytes ? cluster_size - begin : bytes;

		code = lr_decoder_find(decoder, &region,
				       region.first_cluster + offset / cluster_size, &problem);
		if (code == LR_OK && decoder->info.data_pages == 0 && decoder->info.run > 1) {
			/* One index entry for many clusters: pass over all of them at once. */
			uint64_t alike = decoder->info.run * cluster_size - begin;

			part = alike < bytes ? alike : bytes;
			if (!skip_zeros)
				memset(to, 0, part);
		} else if (code == LR_OK) {
			if (has_data(decoder, begin, begin + part))
				code = lr_decoder_decode(decoder, &problem);
			if (code == LR_OK)
				copy_from_cluster(decoder, begin, begin + part, to, skip_zeros);
		}
		if (code < 0) {
			if (ret_problem)
				*ret_problem = problem;
			return code;
		}
		to += part;
		offset += part;
		bytes -= part;
	}
	return LR_OK;
}
