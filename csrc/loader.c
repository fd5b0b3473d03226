#include "loader.h"

#include <string.h>
#include <sys/mman.h>

#include "abort.h"
#include "install.h"

static size_t expanded_bytes(const struct lr_target *target)
{
	uint32_t cluster_size = target->image->info.cluster_size;

	return target->host_page > cluster_size ? target->host_page : cluster_size;
}

int lr_hands_open(struct lr_hands *hands, const struct lr_target *target)
{
	const struct lr_image_info *info = &target->image->info;
	int code;

	memset(hands, 0, sizeof(*hands));
	code = lr_decoder_open(&hands->decoder, target->image);
	if (code < 0)
		return code;
	if (target->host_page > info->page_size) {
		/* But not what only hugetlb's pages take, of which no limit is told. */
		int now = target->zeros ? MAP_NORESERVE : MAP_POPULATE;
		void *expanded = mmap(NULL, expanded_bytes(target), PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS | now, -1, 0);

		if (expanded == MAP_FAILED) {
			lr_hands_close(hands);
			return LR_ERR_NOMEM;
		}
		hands->expanded = expanded;
		hands->expanded_bytes = expanded_bytes(target);
	}
	return LR_OK;
}

/* As it is: a cluster may have been decoded there. */
static void have(void *memory, size_t bytes)
{
	volatile uint8_t *at = memory;

	for (size_t i = 0; i < bytes; i += 4096)
		at[i] = at[i];
}

void lr_hands_have(struct lr_hands *hands)
{
	struct lr_decoder *decoder = &hands->decoder;

	have(decoder->buffers, 2 * (size_t)decoder->image->info.cluster_size);
	have(decoder->cache.slots, LR_INDEX_CACHE_SLOTS * sizeof(*decoder->cache.slots));
}

void lr_hands_close(struct lr_hands *hands)
{
	if (hands->expanded)
		munmap(hands->expanded, hands->expanded_bytes);
	hands->expanded = NULL;
	lr_decoder_close(&hands->decoder);
}

int lr_loader_open(struct lr_loader *loader, struct lr_target *target)
{
	int code;

	memset(loader, 0, sizeof(*loader));
	code = lr_hands_open(&loader->hands, target);
	if (code < 0)
		return code;
	loader->target = target;
	pthread_mutex_init(&loader->busy, NULL);
	return LR_OK;
}

void lr_loader_close(struct lr_loader *loader)
{
	if (!loader->target)
		return;
	lr_hands_close(&loader->hands);
	pthread_mutex_destroy(&loader->busy);
	loader->target = NULL;
}

void lr_loader_quiesce(struct lr_loader *loader)
{
	pthread_mutex_lock(&loader->busy);
	pthread_mutex_unlock(&loader->busy);
}

/* What these hands found last. */
static struct lr_decoded own_decoded(const struct lr_target *target, const struct lr_hands *hands)
{
	return (struct lr_decoded){
		.info = &hands->decoder.info,
		.data = hands->decoder.data,
		.expanded = hands->expanded,
		.page_size = target->image->info.page_size,
		.host_page = target->host_page,
	};
}

static int decode(struct lr_hands *hands, struct lr_problem *ret_problem)
{
	struct lr_decoder *decoder = &hands->decoder;
	const struct lr_image_info *info = &decoder->image->info;
	bool is_there = decoder->decoded_cluster == decoder->info.cluster;
	int code = lr_decoder_decode(decoder, ret_problem);

	if (code == LR_OK && hands->expanded && !is_there)
		lr_layout_expand(&decoder->info, decoder->data, info->page_size, hands->expanded,
				 info->cluster_size);
	return code;
}

void lr_loader_count(struct lr_loader *loader, struct lr_decoder *decoder)
{
	loader->clusters_decoded += decoder->clusters_decoded;
	loader->payload_bytes_read += decoder->payload_bytes_read;
	decoder->clusters_decoded = decoder->payload_bytes_read = 0;
}

/* Bytes of a range that a cluster covers: whole host pages, so maybe past the region's end. */
static uint64_t cluster_bytes(const struct lr_target *target, const struct lr_range *range,
			      uint64_t cluster_begin)
{
	uint64_t rest = range->bytes - cluster_begin;

	return rest < target->image->info.cluster_size ? rest : target->image->info.cluster_size;
}

/* What of [*begin, end) of a range is not settled, from the front: false where all is. */
static bool next_unsettled(const struct lr_target *target, const struct lr_range *range,
			   uint64_t *begin, uint64_t end, uint64_t *ret_stop)
{
	uint64_t first = lr_target_page(target, range, 0);
	uint64_t last = lr_target_page(target, range, end);
	uint64_t page = lr_pageset_next(&target->clusters, lr_target_page(target, range, *begin),
					last, false);

	if (page >= last)
		return false;
	*begin = (page - first) * target->host_page;
	*ret_stop =
		(lr_pageset_next(&target->clusters, page, last, true) - first) * target->host_page;
	return true;
}

/* Cut [begin, *stop) of a range off at the end of the piece that it begins in: false where it is
 * mapped nowhere. Moves *begin on where only a later part is. */
static bool find_piece(struct lr_target *target, struct lr_range *range, uint64_t *begin,
		       uint64_t *stop, struct lr_piece *ret_piece)
{
	uint64_t piece_stop;

	if (!lr_target_find_offset(target, range, *begin, ret_piece) || ret_piece->offset >= *stop)
		return false;
	if (*begin < ret_piece->offset)
		*begin = ret_piece->offset;
	piece_stop = ret_piece->offset + (ret_piece->end - ret_piece->start);
	if (*stop > piece_stop)
		*stop = piece_stop;
	return true;
}

static uint64_t address_of(const struct lr_piece *piece, uint64_t offset)
{
	return piece->start + (offset - piece->offset);
}

int lr_loader_put(struct lr_loader *loader, struct lr_range *range, uint64_t begin, uint64_t end,
		  const uint8_t *data, uint64_t *installed_bytes, int *ret_os_error)
{
	struct lr_target *target = loader->target;
	enum lr_install_kind kind = data ? LR_INSTALL_COPY : LR_INSTALL_ZEROPAGE;
	uint64_t data_begin = begin, stop;
	struct lr_installed installed;
	struct lr_piece piece;
	int code = LR_OK;

	while (code == LR_OK && next_unsettled(target, range, &begin, end, &stop)
	       && find_piece(target, range, &begin, &stop, &piece)) {
		const uint8_t *from = data ? data + (begin - data_begin) : NULL;

		code = lr_install(target, kind, address_of(&piece, begin), from, stop - begin,
				  &installed);
		/* Before any message is read: an owner that gives such a page up will find it
		 * settled. */
		lr_pageset_settle(&target->clusters, lr_target_page(target, range, begin),
				  installed.bytes / target->host_page);
		if (data)
			loader->pages_copied += installed.pages;
		else
			loader->pages_zeroed += installed.pages;
		*installed_bytes += installed.pages * target->host_page;
		*ret_os_error = installed.os_error;
		begin = stop;
	}
	return code;
}

static int install_run(struct lr_loader *loader, struct lr_range *range, uint64_t cluster_begin,
		       const struct lr_decoded *decoded, const struct lr_run *run,
		       uint64_t *installed_bytes, struct lr_problem *ret_problem)
{
	const uint8_t *data = run->is_data ? lr_layout_data(decoded, run->begin) : NULL;
	int os_error = 0;
	int code = lr_loader_put(loader, range, cluster_begin + run->begin,
				 cluster_begin + run->end, data, installed_bytes, &os_error);

	if (code < 0)
		return lr_problem_set(ret_problem, code, os_error, decoded->info->cluster,
				      LR_NOWHERE);
	return LR_OK;
}

void lr_loader_finish(struct lr_target *target, const struct lr_range *range,
		      uint64_t cluster_begin)
{
	uint64_t cluster = lr_target_cluster(target, range, cluster_begin);

	if (lr_target_is_settled(target, range, cluster))
		lr_pageset_put(&target->clusters, cluster, LR_STATE_SETTLED);
}

/* Fence what is not settled of [begin, end): how it was done, or LR_LATER, LR_ERR_NOMEM. */
static int fence_unsettled(struct lr_target *target, struct lr_range *range, uint64_t begin,
			   uint64_t end)
{
	struct lr_piece piece;
	uint64_t stop;
	int how = 1;

	while (next_unsettled(target, range, &begin, end, &stop)
	       && find_piece(target, range, &begin, &stop, &piece)) {
		int fenced =
			lr_install_fence(target, &piece, address_of(&piece, begin), stop - begin);

		if (fenced < 0)
			return fenced;
		how = fenced;
		begin = stop;
	}
	return how;
}

int lr_loader_fence(struct lr_loader *loader, struct lr_range *range, uint64_t cluster,
		    const struct lr_decoded *decoded, const struct lr_problem *problem)
{
	struct lr_target *target = loader->target;
	uint64_t cluster_size = target->image->info.cluster_size;
	uint64_t at = (cluster - range->region.first_cluster) * cluster_size;
	/* In larger host pages: all of the page. */
	uint64_t begin = at - at % target->host_page;
	uint64_t bytes = target->is_huge ? target->host_page : cluster_bytes(target, range, begin);
	uint64_t length = range->region.length - begin;
	struct lr_load_error error = {
		.region = range->number,
		.code = problem->code,
		.os_error = problem->os_error,
		.fenced = 1,
		.offset = begin,
		.length = length < bytes ? length : bytes,
		.cluster = cluster,
		.file_offset = problem->file_offset,
	};

	if (target->on_error == LR_ON_ERROR_ABORT)
		lr_abort(target->image, &range->region, &error);
	if (target->on_error == LR_ON_ERROR_HOLD)
		error.fenced = 0;
	for (uint64_t offset = 0; offset < bytes && target->on_error != LR_ON_ERROR_HOLD;) {
		struct lr_run run = {.is_data = true, .begin = 0, .end = bytes};

		if (decoded)
			run = lr_layout_run(decoded, offset, bytes);
		if (run.is_data) {
			int fenced =
				fence_unsettled(target, range, begin + run.begin, begin + run.end);

			if (fenced < 0)
				return fenced;
			error.fenced = fenced;
		}
		offset = run.end;
	}
	if (lr_pageset_get(&target->clusters, cluster) != LR_STATE_FENCED)
		lr_target_add_error(target, &error);
	for (at = begin; at < begin + length && at < begin + bytes; at += cluster_size)
		lr_pageset_put(&target->clusters, lr_target_cluster(target, range, at),
			       LR_STATE_FENCED);
	return LR_OK;
}

void lr_loader_fence_rest(struct lr_target *target, struct lr_range *range)
{
	struct timespec pause = {.tv_nsec = 100000};

	if (atomic_load_explicit(&range->is_whole, memory_order_relaxed))
		return;
	while (fence_unsettled(target, range, 0, range->bytes) < 0)
		nanosleep(&pause, NULL);
}

bool lr_loader_must_fence(int code)
{
	return code != LR_LATER && code != LR_ERR_NOMEM && code != LR_ERR_GONE;
}

int lr_loader_give_zeros(struct lr_loader *loader, struct lr_range *range, uint64_t offset,
			 uint64_t end, struct lr_outcome *outcome)
{
	struct lr_target *target = loader->target;
	uint64_t first = lr_target_page(target, range, 0), stop;
	struct lr_installed installed;
	struct lr_piece piece;
	int code;

	stop = lr_pageset_next(&target->clusters, lr_target_page(target, range, offset),
			       lr_target_page(target, range, end), false);
	stop = (stop - first) * target->host_page;
	outcome->action = LR_ACTION_WAKE;
	if (!find_piece(target, range, &offset, &stop, &piece))
		return LR_OK;
	code = lr_install_zeros(target, address_of(&piece, offset), stop - offset, &installed);
	if (installed.pages)
		outcome->action = LR_ACTION_ZEROPAGE;
	outcome->bytes = installed.pages * target->host_page;
	loader->pages_zeroed += installed.pages;
	if (code == LR_ERR_SYSTEM) {
		outcome->action = LR_ACTION_FENCE;
		code = lr_install_fence(target, &piece, address_of(&piece, offset),
					target->host_page);
	}
	return code < 0 ? code : LR_OK;
}

/* The touched page, and then the rest of its run: its toucher is on his way meanwhile, which takes
 * longer than that where his processor sleeps. Where whoever waits is waked last there is nothing
 * to be gained. */
static int install_touched(struct lr_loader *loader, struct lr_range *range, uint64_t cluster_begin,
			   const struct lr_decoded *decoded, const struct lr_run *run,
			   uint64_t page, struct lr_outcome *outcome, struct lr_problem *problem)
{
	struct lr_run first = *run;
	int code = LR_OK;

	if (run->is_data && !loader->target->uffd.defers_wakes) {
		first.begin = page;
		first.end = page + loader->target->host_page;
		code = install_run(loader, range, cluster_begin, decoded, &first, &outcome->bytes,
				   problem);
		outcome->touched_ns = lr_clock_ns();
	}
	if (code == LR_OK)
		code = install_run(loader, range, cluster_begin, decoded, run, &outcome->bytes,
				   problem);
	if (!outcome->touched_ns)
		outcome->touched_ns = lr_clock_ns();
	return code;
}

/* Install the touched run, then the others of its cluster. */
static int install_around(struct lr_loader *loader, const struct lr_hands *hands,
			  struct lr_range *range, uint64_t cluster_begin, uint64_t bytes,
			  uint64_t page, const struct lr_run *touched, struct lr_outcome *outcome,
			  struct lr_problem *problem)
{
	struct lr_decoded decoded = own_decoded(loader->target, hands);
	int code = install_touched(loader, range, cluster_begin, &decoded, touched, page, outcome,
				   problem);

	/* A zero page does not bring its cluster's data: that is decoded when it is touched itself.
	 */
	if (code < 0 || (!touched->is_data && decoded.info->data_pages > 0)
	    || loader->target->granularity == LR_GRANULARITY_PAGE
	    || atomic_load_explicit(&loader->target->is_mapping, memory_order_relaxed))
		return code;
	for (uint64_t offset = 0; offset < bytes && code == LR_OK;) {
		struct lr_run run = lr_layout_run(&decoded, offset, bytes);

		if (run.begin != touched->begin)
			code = install_run(loader, range, cluster_begin, &decoded, &run,
					   &outcome->bytes, problem);
		offset = run.end;
	}
	return code;
}

/* Bring the page's run and its cluster from the image. */
static int bring(struct lr_loader *loader, struct lr_hands *hands, struct lr_range *range,
		 uint64_t cluster_begin, uint64_t offset, struct lr_outcome *outcome)
{
	uint64_t cluster = range->region.first_cluster
			   + cluster_begin / loader->target->image->info.cluster_size;
	uint64_t bytes = cluster_bytes(loader->target, range, cluster_begin);
	struct lr_problem problem = {0};
	int code = lr_decoder_find(&hands->decoder, &range->region, cluster, &problem);
	struct lr_decoded decoded = own_decoded(loader->target, hands);
	bool is_found = code == LR_OK;
	struct lr_run touched;

	if (loader->target->record)
		lr_record_note(loader->target->record, cluster);
	if (is_found) {
		touched = lr_layout_run(&decoded, offset - cluster_begin, bytes);
		/* Zeros take no memory: they come by the run in any case, but where the pages
		 * beside it may not be there yet. */
		if ((touched.is_data && loader->target->granularity == LR_GRANULARITY_PAGE)
		    || atomic_load_explicit(&loader->target->is_mapping, memory_order_relaxed)) {
			touched.begin = offset - cluster_begin;
			touched.end = touched.begin + loader->target->host_page;
		}
		outcome->action = touched.is_data ? LR_ACTION_COPY : LR_ACTION_ZEROPAGE;
		atomic_store_explicit(&loader->touched, cluster + 1, memory_order_relaxed);
		if (touched.is_data)
			code = decode(hands, &problem);
		lr_loader_count(loader, &hands->decoder);
		if (code == LR_OK)
			code = install_around(loader, hands, range, cluster_begin, bytes,
					      offset - cluster_begin, &touched, outcome, &problem);
	}
	if (code < 0 && lr_loader_must_fence(code)) {
		outcome->action = LR_ACTION_FENCE;
		return lr_loader_fence(loader, range, cluster, is_found ? &decoded : NULL,
				       &problem);
	}
	lr_loader_finish(loader->target, range, cluster_begin);
	return code;
}

void lr_hands_prepare(struct lr_hands *hands, const struct lr_target *target,
		      const struct lr_range *range, uint64_t offset)
{
	uint64_t cluster_size = target->image->info.cluster_size;
	uint64_t cluster_begin = offset - offset % cluster_size;
	struct lr_decoded decoded = own_decoded(target, hands);

	if (!target->is_huge
	    && !lr_pageset_is_settled(&target->clusters, lr_target_page(target, range, offset))
	    && lr_decoder_find(&hands->decoder, &range->region,
			       range->region.first_cluster + offset / cluster_size, NULL)
		       == LR_OK
	    && lr_layout_run(&decoded, offset - cluster_begin,
			     cluster_bytes(target, range, cluster_begin))
		       .is_data)
		decode(hands, NULL);
}

int lr_loader_fault(struct lr_loader *loader, struct lr_hands *hands, struct lr_range *range,
		    uint64_t offset, struct lr_outcome *ret_outcome)
{
	struct lr_target *target = loader->target;
	uint64_t cluster_begin = offset - offset % target->image->info.cluster_size;
	uint64_t end = cluster_begin + cluster_bytes(target, range, cluster_begin);
	int code;

	memset(ret_outcome, 0, sizeof(*ret_outcome));
	if (lr_pageset_is_settled(&target->clusters, lr_target_page(target, range, offset)))
		code = lr_loader_give_zeros(loader, range, offset, end, ret_outcome);
	else
		code = bring(loader, hands, range, cluster_begin, offset, ret_outcome);
	if (!ret_outcome->touched_ns)
		ret_outcome->touched_ns = lr_clock_ns();
	/* The address space is gone, or will be: nobody waits. */
	return code == LR_ERR_GONE ? LR_OK : code;
}

int lr_loader_install(struct lr_loader *loader, struct lr_range *range,
		      const struct lr_decoded *decoded, uint64_t clusters,
		      struct lr_problem *ret_problem)
{
	struct lr_target *target = loader->target;
	uint64_t cluster_size = target->image->info.cluster_size, installed_bytes = 0;
	uint64_t begin = (decoded->info->cluster - range->region.first_cluster) * cluster_size;
	uint64_t end = begin + clusters * cluster_size;
	int code = LR_OK;

	if (end > range->bytes)
		end = range->bytes;
	for (uint64_t offset = 0; offset < end - begin && code == LR_OK;) {
		struct lr_run run = {.begin = 0, .end = end - begin};

		if (decoded->info->data_pages > 0)
			run = lr_layout_run(decoded, offset, end - begin);
		code = install_run(loader, range, begin, decoded, &run, &installed_bytes,
				   ret_problem);
		offset = run.end;
	}
	if (code < 0 && lr_loader_must_fence(code)) {
		int fenced = lr_loader_fence(loader, range, decoded->info->cluster, decoded,
					     ret_problem);

		return fenced < 0 ? fenced : code;
	}
	for (uint64_t offset = begin; code == LR_OK && offset < end; offset += cluster_size)
		lr_loader_finish(target, range, offset);
	return code;
}
