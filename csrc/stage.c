#include "stage.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "install.h"
#include "jobs.h"

/* What is copied at once, between two looks for faults. */
#define STEP_BYTES (64u << 10)
/* Where less than this of a huge page is data, the rest would cost more memory than it saves time.
 */
#define DATA_PAGES_MIN 480

int lr_stage_open(struct lr_stage *stage, struct lr_target *target)
{
	uint8_t *mapping;

	memset(stage, 0, sizeof(*stage));
	/* As the regions are mapped, or nothing of it could be moved there. */
	mapping = mmap(NULL, 2 * LR_STAGE_BYTES, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mapping == MAP_FAILED)
		return LR_ERR_NOMEM;
	/* A page that a child has too cannot be moved. */
	madvise(mapping, 2 * LR_STAGE_BYTES, MADV_DONTFORK);
	stage->mapping = mapping;
	stage->memory = mapping + (-(uintptr_t)mapping & (LR_STAGE_BYTES - 1));
	/* As far as the machine and this process allow it. */
	madvise(stage->memory, LR_STAGE_BYTES, MADV_HUGEPAGE);
	stage->target = target;
	stage->is_clean = true;
	stage->is_hopeless =
		!(target->uffd.features & LR_UFFD_FEATURE_MOVE) || target->host_page != 4096;
	return LR_OK;
}

void lr_stage_close(struct lr_stage *stage)
{
	uint8_t *mapping = stage->mapping;

	/* First: a forked child, which does not have the memory, must not unmap what is there. */
	stage->mapping = NULL;
	if (mapping)
		munmap(mapping, 2 * LR_STAGE_BYTES);
}

static void set_bits(uint64_t *bits, uint64_t first, uint64_t end)
{
	for (uint64_t i = first; i < end; i++)
		bits[i / 64] |= 1ull << (i % 64);
}

static bool is_set(const uint64_t *bits, uint64_t i)
{
	return bits[i / 64] >> (i % 64) & 1;
}

uint32_t lr_stage_data_pages(const struct lr_stage *stage)
{
	uint32_t pages = 0;

	for (int i = 0; i < (int)LR_STAGE_WORDS; i++)
		pages += (uint32_t)__builtin_popcountll(stage->data[i]);
	return pages;
}

/* Note for each host page of [begin, end), offsets in the range, whether the cluster that starts at
 * `cluster_begin` has data there. */
static void note_pages(struct lr_stage *stage, const struct lr_cluster_info *info,
		       uint64_t cluster_begin, uint64_t begin, uint64_t end)
{
	uint64_t page_size = stage->target->image->info.page_size;
	uint64_t host_page = stage->target->host_page;

	for (uint64_t at = begin; at < end; at += host_page) {
		uint64_t page = (at - cluster_begin) / page_size;
		uint64_t stop = (at - cluster_begin + host_page + page_size - 1) / page_size;
		bool is_data = false;

		for (; page < stop && page < info->pages; page++)
			is_data |= lr_states_get(info->states, (uint32_t)page) == LR_PAGE_DATA;
		set_bits(is_data ? stage->data : stage->zero, (at - stage->offset) / host_page,
			 (at - stage->offset) / host_page + 1);
	}
}

/* Lay the data pages out that lie in [begin, end). */
static void spread(struct lr_stage *stage, const struct lr_decoder *decoder, uint64_t cluster_begin,
		   uint64_t begin, uint64_t end)
{
	const struct lr_cluster_info *info = &decoder->info;
	uint64_t page_size = stage->target->image->info.page_size;
	uint8_t *to = stage->memory + stage->lead;
	const uint8_t *data = decoder->data;

	/* Parts of a host page that has data. */
	if (stage->target->host_page > page_size && !stage->is_clean)
		memset(to + (begin - stage->offset), 0, end - begin);
	for (uint32_t page = 0; page < info->pages; page++) {
		uint64_t at = cluster_begin + page * page_size, stop = at + page_size;
		uint64_t from = at > begin ? at : begin;

		if (lr_states_get(info->states, page) != LR_PAGE_DATA)
			continue;
		stop = stop < end ? stop : end;
		if (from < stop)
			memcpy(to + (from - stage->offset), data + (from - at), stop - from);
		data += page_size;
	}
}

int lr_stage_add(struct lr_stage *stage, struct lr_decoder *decoder, struct lr_problem *ret_problem)
{
	const struct lr_image_info *image = &stage->target->image->info;
	const struct lr_cluster_info *info = &decoder->info;
	uint64_t begin = (info->cluster - stage->range->region.first_cluster) * image->cluster_size;
	uint64_t data_bytes = (uint64_t)info->data_pages * image->page_size;
	uint64_t from = begin > stage->offset ? begin : stage->offset;
	uint64_t end = begin + image->cluster_size, stop = stage->offset + stage->bytes;
	uint8_t *own = decoder->data;
	int code;

	if (stop > end)
		stop = end;
	if (info->data_pages == info->pages && from == begin && begin + data_bytes <= stop) {
		/* As it will lie: decoded where it is wanted. */
		decoder->data = stage->memory + stage->lead + (begin - stage->offset);
		decoder->decoded_cluster = LR_NOWHERE;
		code = lr_decoder_decode(decoder, ret_problem);
		decoder->data = own;
		decoder->decoded_cluster = LR_NOWHERE;
	} else {
		code = lr_decoder_decode(decoder, ret_problem);
		if (code == LR_OK)
			spread(stage, decoder, begin, from, stop);
	}
	stage->job.clusters_decoded += decoder->clusters_decoded;
	stage->job.payload_bytes_read += decoder->payload_bytes_read;
	decoder->clusters_decoded = decoder->payload_bytes_read = 0;
	if (code == LR_OK)
		note_pages(stage, info, begin, from, stop);
	return code;
}

/* ---- In the pager ---- */

/* Move all of it at once. False where it is to be copied after all. */
static bool move(struct lr_loader *loader, struct lr_stage *stage, int *ret_code)
{
	struct lr_target *target = loader->target;
	uint64_t first = lr_target_page(target, stage->range, stage->offset);
	uint64_t last = first + LR_STAGE_BYTES / target->host_page, to;
	struct lr_piece piece;
	int64_t done;

	*ret_code = LR_OK;
	if (lr_pageset_next(&target->clusters, first, last, true) < last
	    || !lr_target_find_offset(target, stage->range, stage->offset, &piece)
	    || piece.offset > stage->offset)
		return false;
	to = piece.start + (stage->offset - piece.offset);
	if (to % LR_STAGE_BYTES || piece.end - to < LR_STAGE_BYTES)
		return false;
	done = lr_uffd_move(&target->uffd, to, stage->memory, LR_STAGE_BYTES);
	if (done > 0) {
		/* Before any message is read, as for all that is installed. */
		lr_pageset_settle(&target->clusters, first, (uint64_t)done / target->host_page);
		loader->pages_copied += (uint64_t)done / target->host_page;
		loader->pages_moved += (uint64_t)done / target->host_page;
		stage->done = (uint64_t)done;
		return true;
	}
	*ret_code = done == -EAGAIN ? LR_LATER : LR_OK;
	/* Not the same protection, or locked: such will be the case again. */
	stage->is_hopeless = done == -EINVAL || done == -EBUSY || done == -ENOTTY;
	return false;
}

/* The next pages that are alike. */
static const uint64_t *next_run(const struct lr_stage *stage, uint64_t *ret_end)
{
	uint64_t host_page = stage->target->host_page, page = stage->done / host_page;
	uint64_t last = stage->bytes / host_page, most = page + STEP_BYTES / host_page;
	const uint64_t *bits = NULL;

	if (is_set(stage->data, page))
		bits = stage->data;
	else if (is_set(stage->zero, page))
		bits = stage->zero;
	while (page < last && page < most
	       && (bits ? is_set(bits, page)
			: !is_set(stage->data, page) && !is_set(stage->zero, page)))
		page++;
	*ret_end = page * host_page;
	return bits;
}

/* A failure that is nobody's fault but the kernel's: the cluster is fenced. */
static int fence_at(struct lr_loader *loader, struct lr_stage *stage, int os_error)
{
	uint64_t at = stage->offset + stage->done;
	uint64_t cluster_size = loader->target->image->info.cluster_size;
	uint64_t cluster = stage->range->region.first_cluster + at / cluster_size;

	lr_problem_set(&stage->job.problem, LR_ERR_SYSTEM, os_error, cluster, LR_NOWHERE);
	return lr_loader_fence(loader, stage->range, cluster, NULL, &stage->job.problem);
}

static int put(struct lr_loader *loader, struct lr_stage *stage)
{
	const uint8_t *memory = stage->memory + stage->lead;
	uint64_t end, installed_bytes = 0;
	const uint64_t *bits = next_run(stage, &end);
	int code = LR_OK, os_error = 0;

	if (bits)
		code = lr_loader_put(loader, stage->range, stage->offset + stage->done,
				     stage->offset + end,
				     bits == stage->data ? memory + stage->done : NULL,
				     &installed_bytes, &os_error);
	if (code == LR_ERR_SYSTEM)
		code = fence_at(loader, stage, os_error);
	if (code == LR_OK)
		stage->done = end;
	return code;
}

static int act(struct lr_loader *loader, struct lr_job *job)
{
	struct lr_stage *stage = job->context;
	uint64_t cluster_size = loader->target->image->info.cluster_size;
	int code = LR_OK;

	if (stage->is_moved) {
		bool is_done = move(loader, stage, &code);

		if (code == LR_LATER)
			return code;
		stage->is_moved = is_done;
	} else {
		code = put(loader, stage);
	}
	if (code < 0 || stage->done < stage->bytes)
		return code < 0 ? code : LR_MORE;
	for (uint64_t at = stage->offset - stage->offset % cluster_size;
	     at < stage->offset + stage->bytes; at += cluster_size)
		lr_loader_finish(loader->target, stage->range, at);
	return LR_OK;
}

/* Somebody waits for a page: it need not be decoded once more. */
static bool serve(struct lr_loader *loader, struct lr_job *job, uint64_t offset,
		  uint64_t *installed_bytes)
{
	struct lr_stage *stage = job->context;
	uint64_t host_page = stage->target->host_page, begin = offset - stage->offset, end = begin;
	int os_error;

	/* A page that was given up is not to come back, but to be zeros. */
	if (offset < stage->offset || begin >= stage->bytes || begin < stage->done
	    || lr_pageset_is_settled(&loader->target->clusters,
				     lr_target_page(loader->target, stage->range, offset)))
		return false;
	while (end < stage->bytes && end < begin + STEP_BYTES
	       && is_set(stage->data, end / host_page))
		end += host_page;
	return end > begin
	       && lr_loader_put(loader, stage->range, offset, stage->offset + end,
				stage->memory + stage->lead + begin, installed_bytes, &os_error)
			  == LR_OK
	       && *installed_bytes > 0;
}

/* ---- */

void lr_stage_begin(struct lr_stage *stage, struct lr_range *range, uint64_t offset, uint64_t bytes,
		    uint64_t lead)
{
	stage->job.serve = serve;
	stage->job.context = stage;
	stage->range = range;
	stage->offset = offset;
	stage->bytes = bytes;
	stage->lead = lead;
	stage->done = 0;
	memset(stage->data, 0, sizeof(stage->data));
	memset(stage->zero, 0, sizeof(stage->zero));
}

void lr_stage_submit(struct lr_stage *stage, struct lr_pager *pager)
{
	struct lr_job *job = &stage->job;
	uint32_t pages = lr_stage_data_pages(stage);

	/* All of it is accounted for, and nothing had come when it was looked at. */
	stage->is_moved = !stage->is_hopeless && pages >= DATA_PAGES_MIN && stage->lead == 0
			  && stage->bytes == LR_STAGE_BYTES;
	for (uint32_t page = 0; page < LR_STAGE_BYTES / 4096 && stage->is_moved; page++) {
		if (is_set(stage->data, page))
			continue;
		stage->is_moved = is_set(stage->zero, page);
		if (!stage->is_clean)
			memset(stage->memory + (size_t)page * 4096, 0, 4096);
	}
	stage->is_clean = false;
	stage->is_used = true;
	job->act = act;
	job->range = stage->range;
	job->cluster = stage->range->region.first_cluster
		       + stage->offset / stage->target->image->info.cluster_size;
	lr_pager_submit(pager, job);
}

int lr_stage_wait(struct lr_stage *stage)
{
	int code;

	if (!stage->is_used)
		return LR_OK;
	code = lr_job_wait(&stage->job);
	stage->is_used = false;
	/* What was moved away is zeros again. */
	stage->is_clean = code == LR_OK && stage->is_moved;
	memset(&stage->job, 0, sizeof(stage->job));
	return code;
}
