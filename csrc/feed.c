#include "feed.h"

#include <string.h>
#include <sys/mman.h>

#include "huge.h"
#include "jobs.h"

/* How much is asked for at once where the index has one entry for many zero clusters: a fault that
 * comes meanwhile waits for it. */
#define ZERO_STEP_BYTES (2u << 20)

static uint64_t buffer_bytes(const struct lr_feed *feed)
{
	const struct lr_target *target = feed->pager->target;
	bool is_expanded = target->host_page > target->image->info.page_size;

	if (target->is_huge)
		return target->host_page;
	return (is_expanded ? 2 : 1) * (uint64_t)target->image->info.cluster_size;
}

int lr_feed_open(struct lr_feed *feed, struct lr_pager *pager)
{
	const struct lr_target *target = pager->target;
	uint64_t cluster_size = target->image->info.cluster_size, bytes;
	void *buffers;
	int code;

	memset(feed, 0, sizeof(*feed));
	feed->pager = pager;
	code = lr_decoder_open(&feed->decoder, target->image);
	if (code < 0)
		return code;
	bytes = buffer_bytes(feed);
	feed->slot_count = target->is_huge ? LR_FEED_SLOTS_HUGE : LR_FEED_SLOTS;
	buffers = mmap(NULL, feed->slot_count * bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buffers == MAP_FAILED) {
		lr_decoder_close(&feed->decoder);
		return LR_ERR_NOMEM;
	}
	feed->buffers = buffers;
	for (uint32_t i = 0; i < feed->slot_count; i++) {
		feed->slots[i].data = feed->buffers + i * bytes;
		if (!target->is_huge && bytes > cluster_size)
			feed->slots[i].expanded = feed->slots[i].data + cluster_size;
	}
	return LR_OK;
}

void lr_feed_close(struct lr_feed *feed)
{
	if (!feed->buffers)
		return;
	munmap(feed->buffers, feed->slot_count * buffer_bytes(feed));
	feed->buffers = NULL;
	lr_decoder_close(&feed->decoder);
}

static int take_result(struct lr_feed_slot *slot, struct lr_problem *ret_problem)
{
	int code;

	if (!slot->is_used)
		return LR_OK;
	code = lr_job_wait(&slot->job);
	slot->is_used = false;
	if (code < 0 && ret_problem)
		*ret_problem = slot->job.problem;
	return code;
}

static int decode(struct lr_feed *feed, struct lr_feed_slot *slot)
{
	const struct lr_image_info *info = &feed->pager->target->image->info;
	struct lr_decoder *decoder = &feed->decoder;
	uint8_t *data = decoder->data;
	int code = lr_decoder_decode(decoder, &slot->job.problem);

	if (code < 0)
		return code;
	/* Exchanged, not copied. */
	decoder->data = slot->data;
	decoder->decoded_cluster = LR_NOWHERE;
	slot->data = data;
	if (slot->expanded)
		lr_layout_expand(&slot->info, slot->data, info->page_size, slot->expanded,
				 info->cluster_size);
	return LR_OK;
}

static uint64_t run_of(const struct lr_feed *feed, const struct lr_range *range,
		       const struct lr_cluster_info *info, uint64_t end)
{
	uint64_t run = ZERO_STEP_BYTES / feed->pager->target->image->info.cluster_size;
	uint64_t last = range->region.first_cluster + range->region.cluster_count;

	if (info->data_pages > 0 || run == 0)
		return 1;
	if (run > info->run)
		run = info->run;
	if (run > end - info->cluster)
		run = end - info->cluster;
	return run < last - info->cluster ? run : last - info->cluster;
}

/* A cluster, and the zero ones behind it. */
static void prepare(struct lr_feed *feed, struct lr_feed_slot *slot, uint64_t end)
{
	const struct lr_target *target = feed->pager->target;
	struct lr_job *job = &slot->job;

	job->code =
		lr_decoder_find(&feed->decoder, &job->range->region, job->cluster, &job->problem);
	if (job->code < 0)
		return;
	slot->info = feed->decoder.info;
	job->code = decode(feed, slot);
	job->clusters = run_of(feed, job->range, &slot->info, end);
	job->decoded = (struct lr_decoded){
		.info = &slot->info,
		.data = slot->data,
		.expanded = slot->expanded,
		.page_size = target->image->info.page_size,
		.host_page = target->host_page,
	};
}

/* ---- Host pages that are larger than a cluster ---- */

static int put_page(struct lr_loader *loader, struct lr_job *job)
{
	struct lr_feed_slot *slot = job->context;
	uint64_t installed_bytes = 0;
	int fenced = LR_OK;
	int code =
		lr_huge_install(loader, job->range, slot->offset, slot->is_data ? slot->data : NULL,
				&installed_bytes, &job->problem);

	if (code < 0 && lr_loader_must_fence(code))
		fenced = lr_loader_fence(loader, job->range, job->cluster, NULL, &job->problem);
	return fenced < 0 ? fenced : code;
}

/* Somebody waits for it: it need not be gathered once more. */
static bool serve_page(struct lr_loader *loader, struct lr_job *job, uint64_t offset,
		       uint64_t *installed_bytes)
{
	struct lr_feed_slot *slot = job->context;

	return offset == slot->offset
	       && lr_huge_install(loader, job->range, offset, slot->is_data ? slot->data : NULL,
				  installed_bytes, NULL)
			  == LR_OK
	       && *installed_bytes > 0;
}

static void prepare_page(struct lr_feed *feed, struct lr_feed_slot *slot, uint64_t end)
{
	struct lr_target *target = feed->pager->target;
	struct lr_job *job = &slot->job;
	uint64_t first = job->range->region.first_cluster;
	uint64_t offset = (job->cluster - first) * target->image->info.cluster_size;
	struct lr_huge_clusters clusters;

	slot->offset = offset - offset % target->host_page;
	clusters = lr_huge_clusters(target, job->range, slot->offset);
	job->clusters = clusters.first + clusters.count - job->cluster;
	if (job->clusters > end - job->cluster)
		job->clusters = end - job->cluster;
	job->code = lr_huge_gather(&feed->decoder, target, job->range, slot->offset, slot->data,
				   &slot->is_data, &job->problem);
	if (job->code < 0) {
		job->cluster = job->problem.cluster;
		return;
	}
	job->context = slot;
	job->act = put_page;
	job->serve = serve_page;
}

/* It is on its way by this feed, with another cluster of its page. */
static bool is_begun(const struct lr_feed *feed, const struct lr_range *range, uint64_t cluster)
{
	const struct lr_target *target = feed->pager->target;
	uint64_t offset =
		(cluster - range->region.first_cluster) * target->image->info.cluster_size;
	bool is_found = false;

	for (uint32_t i = 0; i < feed->slot_count && target->is_huge; i++) {
		const struct lr_feed_slot *slot = &feed->slots[i];

		is_found |= slot->is_used && slot->job.range == range && offset >= slot->offset
			    && offset - slot->offset < target->host_page;
	}
	return is_found;
}

/* ---- */

int lr_feed_load(struct lr_feed *feed, struct lr_range *range, uint64_t cluster, uint64_t end,
		 uint64_t *ret_run, struct lr_problem *ret_problem)
{
	struct lr_target *target = feed->pager->target;
	struct lr_feed_slot *slot = &feed->slots[feed->next];
	struct lr_job *job = &slot->job;
	bool is_failed;
	int before;

	*ret_run = 1;
	if (lr_target_is_settled(target, range, cluster) || is_begun(feed, range, cluster))
		return LR_OK;
	before = take_result(slot, ret_problem);
	memset(job, 0, sizeof(*job));
	job->range = range;
	job->cluster = cluster;
	job->clusters = 1;
	if (target->is_huge)
		prepare_page(feed, slot, end);
	else
		prepare(feed, slot, end);
	*ret_run = job->clusters;
	job->payload_bytes_read = feed->decoder.payload_bytes_read;
	job->clusters_decoded = feed->decoder.clusters_decoded;
	feed->decoder.payload_bytes_read = feed->decoder.clusters_decoded = 0;
	slot->is_used = true;
	feed->next = (feed->next + 1) % feed->slot_count;
	is_failed = job->code < 0;
	if (feed->installs)
		lr_pager_do(feed->pager, job);
	else
		lr_pager_submit(feed->pager, job);
	/* Known now: the caller may want to go no further. */
	return is_failed && before == LR_OK ? take_result(slot, ret_problem) : before;
}

int lr_feed_finish(struct lr_feed *feed, struct lr_problem *ret_problem)
{
	int result = LR_OK;

	for (uint32_t i = 0; i < feed->slot_count; i++) {
		struct lr_feed_slot *slot = &feed->slots[(feed->next + i) % feed->slot_count];
		int code = take_result(slot, result == LR_OK ? ret_problem : NULL);

		if (result == LR_OK)
			result = code;
	}
	return result;
}
