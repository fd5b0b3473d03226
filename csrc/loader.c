#include "loader.h"

#include <string.h>
#include <sys/mman.h>

#include "install.h"

/* A stretch of a cluster whose units are all data, or all zeros. Offsets are in the cluster. */
struct run {
	bool is_data;
	uint64_t begin;
	uint64_t end;
	const uint8_t *data; /* of the byte at `begin`; NULL for zeros */
};

int lr_loader_open(struct lr_loader *loader, struct lr_target *target, bool is_demand)
{
	const struct lr_image_info *info = &target->image->info;
	int code;

	memset(loader, 0, sizeof(*loader));
	loader->target = target;
	loader->is_demand = is_demand;
	if (target->host_page > info->cluster_size)
		return LR_ERR_PAGE_SIZE;
	code = lr_decoder_open(&loader->decoder, target->image);
	if (code < 0)
		return code;
	pthread_mutex_init(&loader->busy, NULL);
	if (target->host_page > info->page_size) {
		void *expanded = mmap(NULL, info->cluster_size, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (expanded == MAP_FAILED) {
			lr_loader_close(loader);
			return LR_ERR_NOMEM;
		}
		loader->expanded = expanded;
	}
	return LR_OK;
}

void lr_loader_close(struct lr_loader *loader)
{
	if (!loader->target)
		return;
	if (loader->expanded)
		munmap(loader->expanded, loader->target->image->info.cluster_size);
	lr_decoder_close(&loader->decoder);
	pthread_mutex_destroy(&loader->busy);
	loader->target = NULL;
}

void lr_loader_quiesce(struct lr_loader *loader)
{
	pthread_mutex_lock(&loader->busy);
	pthread_mutex_unlock(&loader->busy);
}

/* A unit is what is installed at the least: a page of the image or of the host, whichever is
 * larger. */
static uint64_t unit_bytes(const struct lr_loader *loader)
{
	uint32_t image_page = loader->target->image->info.page_size;

	return loader->target->host_page > image_page ? loader->target->host_page : image_page;
}

static bool unit_is_data(const struct lr_loader *loader, uint64_t offset)
{
	uint64_t page_size = loader->target->image->info.page_size;
	uint64_t end = offset + unit_bytes(loader);

	for (; offset < end; offset += page_size) {
		uint32_t page = (uint32_t)(offset / page_size);

		if (page < loader->decoder.info.pages
		    && lr_states_get(loader->decoder.info.states, page) == LR_PAGE_DATA)
			return true;
	}
	return false;
}

/* Where the decoded bytes of a data unit are. */
static const uint8_t *unit_data(const struct lr_loader *loader, uint64_t offset)
{
	uint64_t page_size = loader->target->image->info.page_size;
	uint64_t packed = 0;

	if (loader->expanded)
		return loader->expanded + offset;
	for (uint32_t page = 0; page < offset / page_size; page++)
		packed += lr_states_get(loader->decoder.info.states, page) == LR_PAGE_DATA;
	return loader->decoder.data + packed * page_size;
}

/* The longest run around `offset` (of a unit), within the cluster's `bytes`. */
static struct run run_around(const struct lr_loader *loader, uint64_t offset, uint64_t bytes)
{
	uint64_t unit = unit_bytes(loader);
	struct run run = {
		.is_data = unit_is_data(loader, offset), .begin = offset, .end = offset + unit};

	while (run.begin > 0 && unit_is_data(loader, run.begin - unit) == run.is_data)
		run.begin -= unit;
	while (run.end < bytes && unit_is_data(loader, run.end) == run.is_data)
		run.end += unit;
	if (run.end > bytes)
		run.end = bytes;
	if (run.is_data)
		run.data = unit_data(loader, run.begin);
	return run;
}

/* Where host pages are larger than the image's, lay the cluster out as it will lie in memory. */
static void expand(struct lr_loader *loader)
{
	const struct lr_cluster_info *info = &loader->decoder.info;
	uint64_t page_size = loader->target->image->info.page_size;
	const uint8_t *packed = loader->decoder.data;

	memset(loader->expanded, 0, loader->target->image->info.cluster_size);
	for (uint32_t page = 0; page < info->pages; page++) {
		if (lr_states_get(info->states, page) != LR_PAGE_DATA)
			continue;
		memcpy(loader->expanded + page * page_size, packed, page_size);
		packed += page_size;
	}
}

static int decode(struct lr_loader *loader, struct lr_problem *ret_problem)
{
	int code = lr_decoder_decode(&loader->decoder, ret_problem);

	if (code == LR_OK && loader->expanded)
		expand(loader);
	return code;
}

static int install_run(struct lr_loader *loader, struct lr_range *range, uint64_t cluster_begin,
		       const struct run *run, uint64_t *installed_bytes,
		       struct lr_problem *ret_problem)
{
	enum lr_install_kind kind = run->is_data ? LR_INSTALL_COPY : LR_INSTALL_ZEROPAGE;
	uint64_t pages = 0;
	int os_error = 0;
	int code = lr_install(loader->target, range, kind, loader->is_demand,
			      range->start + cluster_begin + run->begin, run->data,
			      run->end - run->begin, &pages, &os_error);

	if (run->is_data)
		loader->pages_copied += pages;
	else
		loader->pages_zeroed += pages;
	*installed_bytes += pages * loader->target->host_page;
	if (code < 0)
		return lr_problem_set(ret_problem, code, os_error, loader->decoder.info.cluster,
				      LR_NOWHERE);
	return LR_OK;
}

/* Make what cannot be loaded of a cluster untouchable, and record why. Without an index entry that
 * is all of it. */
static void fence(struct lr_loader *loader, struct lr_range *range, uint64_t cluster_begin,
		  uint64_t bytes, bool is_found, const struct lr_problem *problem)
{
	struct lr_target *target = loader->target;
	uint64_t cluster =
		range->region.first_cluster + cluster_begin / target->image->info.cluster_size;
	uint64_t length = range->region.length - cluster_begin;
	struct lr_load_error error = {
		.region = range->number,
		.code = problem->code,
		.os_error = problem->os_error,
		.offset = cluster_begin,
		.length = length < bytes ? length : bytes,
		.cluster = cluster,
		.file_offset = problem->file_offset,
	};
	bool is_first = true;

	for (uint64_t offset = 0; offset < bytes;) {
		struct run run = {.is_data = true, .begin = 0, .end = bytes};

		if (is_found)
			run = run_around(loader, offset, bytes);
		if (run.is_data) {
			int fenced = lr_install_fence(target, range,
						      range->start + cluster_begin + run.begin,
						      run.end - run.begin);

			/* One that did not take counts more than those that did. */
			error.fenced = is_first || fenced == 0 ? fenced : error.fenced;
			is_first = false;
		}
		offset = run.end;
	}
	if (lr_pageset_get(&target->clusters, cluster) != LR_STATE_FENCED)
		lr_target_add_error(target, &error);
	lr_pageset_put(&target->clusters, cluster, LR_STATE_FENCED);
}

/* Bytes of a range that a cluster covers: whole host pages, so maybe past the region's end. */
static uint64_t cluster_bytes(const struct lr_loader *loader, const struct lr_range *range,
			      uint64_t cluster_begin)
{
	uint64_t rest = range->bytes - cluster_begin;
	uint64_t cluster_size = loader->target->image->info.cluster_size;

	return rest < cluster_size ? rest : cluster_size;
}

/* True where a failed load must end in a fence: the range is still served, its address space still
 * there, and trying again later would not help. */
static bool must_fence(int code)
{
	return code != LR_ERR_CLOSED && code != LR_ERR_GONE && code != LR_ERR_NOMEM;
}

/* Install the touched run, then the others of its cluster. */
static int install_around(struct lr_loader *loader, struct lr_range *range, uint64_t cluster_begin,
			  uint64_t bytes, const struct run *touched, struct lr_outcome *outcome,
			  struct lr_problem *problem)
{
	struct lr_pageset *clusters = &loader->target->clusters;
	uint64_t cluster = loader->decoder.info.cluster;
	int code = install_run(loader, range, cluster_begin, touched, &outcome->bytes, problem);

	outcome->touched_ns = lr_clock_ns();
	/* A zero page does not bring its cluster's data: that is decoded when it is touched itself.
	 */
	if (code < 0 || (!touched->is_data && loader->decoder.info.data_pages > 0))
		return code;
	/* A second message for a cluster that is there, from another thread: its page is dealt
	 * with. */
	if (lr_pageset_get(clusters, cluster) == LR_STATE_PRESENT)
		return code;
	for (uint64_t offset = 0; offset < bytes;) {
		struct run run = run_around(loader, offset, bytes);

		if (run.begin != touched->begin) {
			code = install_run(loader, range, cluster_begin, &run, &outcome->bytes,
					   problem);
			if (code < 0)
				return code;
		}
		offset = run.end;
	}
	lr_pageset_put(clusters, cluster, LR_STATE_PRESENT);
	return LR_OK;
}

void lr_loader_fault(struct lr_loader *loader, struct lr_range *range, uint64_t offset,
		     struct lr_outcome *ret_outcome)
{
	uint64_t cluster_size = loader->target->image->info.cluster_size;
	uint64_t cluster = range->region.first_cluster + offset / cluster_size;
	uint64_t cluster_begin = offset - offset % cluster_size;
	uint64_t bytes = cluster_bytes(loader, range, cluster_begin);
	struct lr_problem problem = {0};
	struct run touched = {0};
	int code = lr_decoder_find(&loader->decoder, &range->region, cluster, &problem);
	bool is_found = code == LR_OK;

	*ret_outcome = (struct lr_outcome){.action = LR_ACTION_FENCE};
	if (is_found) {
		uint64_t unit = unit_bytes(loader);

		touched = run_around(loader, (offset - cluster_begin) / unit * unit, bytes);
		if (touched.is_data)
			code = decode(loader, &problem);
		if (code == LR_OK) {
			ret_outcome->action = touched.is_data ? LR_ACTION_COPY : LR_ACTION_ZEROPAGE;
			code = install_around(loader, range, cluster_begin, bytes, &touched,
					      ret_outcome, &problem);
			if (code == LR_OK && ret_outcome->bytes == 0)
				ret_outcome->action = LR_ACTION_WAKE;
		}
	}
	if (code < 0 && must_fence(code)) {
		ret_outcome->action = LR_ACTION_FENCE;
		fence(loader, range, cluster_begin, bytes, is_found, &problem);
	}
	if (!ret_outcome->touched_ns)
		ret_outcome->touched_ns = lr_clock_ns();
}

/* Many clusters of zeros from one index entry: one request, and their states. */
static int load_zeros(struct lr_loader *loader, struct lr_range *range, uint64_t cluster_begin,
		      uint64_t max_clusters, uint64_t *ret_run, struct lr_problem *ret_problem)
{
	const struct lr_cluster_info *info = &loader->decoder.info;
	uint64_t cluster_size = loader->target->image->info.cluster_size;
	uint64_t last = range->region.first_cluster + range->region.cluster_count;
	uint64_t count = last - info->cluster;
	struct run run = {.is_data = false};
	uint64_t installed_bytes = 0;
	int code;

	if (count > info->run)
		count = info->run;
	if (count > max_clusters)
		count = max_clusters;
	run.end = count * cluster_size;
	if (run.end > range->bytes - cluster_begin)
		run.end = range->bytes - cluster_begin;
	code = install_run(loader, range, cluster_begin, &run, &installed_bytes, ret_problem);
	if (code == LR_OK)
		for (uint64_t i = 0; i < count; i++)
			lr_pageset_put(&loader->target->clusters, info->cluster + i,
				       LR_STATE_PRESENT);
	*ret_run = count;
	return code;
}

int lr_loader_load(struct lr_loader *loader, struct lr_range *range, uint64_t cluster,
		   uint64_t max_clusters, uint64_t *ret_run, struct lr_problem *ret_problem)
{
	uint64_t cluster_begin =
		(cluster - range->region.first_cluster) * loader->target->image->info.cluster_size;
	uint64_t bytes = cluster_bytes(loader, range, cluster_begin);
	struct lr_outcome outcome = {0};
	struct lr_problem problem = {0};
	bool is_found;
	int code;

	*ret_run = 1;
	if (lr_pageset_get(&loader->target->clusters, cluster) == LR_STATE_PRESENT)
		return LR_OK;
	code = lr_decoder_find(&loader->decoder, &range->region, cluster, &problem);
	is_found = code == LR_OK;
	if (is_found && loader->decoder.info.data_pages == 0) {
		code = load_zeros(loader, range, cluster_begin, max_clusters, ret_run, &problem);
	} else if (is_found) {
		code = decode(loader, &problem);
		for (uint64_t offset = 0; code == LR_OK && offset < bytes;) {
			struct run run = run_around(loader, offset, bytes);

			code = install_run(loader, range, cluster_begin, &run, &outcome.bytes,
					   &problem);
			offset = run.end;
		}
		if (code == LR_OK)
			lr_pageset_put(&loader->target->clusters, cluster, LR_STATE_PRESENT);
	}
	if (code < 0 && must_fence(code))
		fence(loader, range, cluster_begin, bytes, is_found, &problem);
	if (code < 0 && ret_problem)
		*ret_problem = problem;
	return code;
}
