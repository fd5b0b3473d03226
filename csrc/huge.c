#include "huge.h"

#include <errno.h>
#include <string.h>

#include "install.h"

struct lr_huge_clusters lr_huge_clusters(const struct lr_target *target,
					 const struct lr_range *range, uint64_t offset)
{
	uint64_t first = offset / target->image->info.cluster_size;
	uint64_t count = target->host_page / target->image->info.cluster_size;
	uint64_t left = range->region.cluster_count - first;

	return (struct lr_huge_clusters){
		.first = range->region.first_cluster + first,
		.count = count < left ? count : left,
	};
}

bool lr_huge_has_data(struct lr_decoder *decoder, const struct lr_target *target,
		      const struct lr_range *range, uint64_t offset)
{
	struct lr_huge_clusters clusters = lr_huge_clusters(target, range, offset);

	for (uint64_t i = 0; i < clusters.count; i += decoder->info.run)
		if (lr_decoder_find(decoder, &range->region, clusters.first + i, NULL) < 0
		    || decoder->info.data_pages > 0)
			return true;
	return false;
}

/* The cluster that was found last, as it lies in memory: whole, with zeros where it has no data. */
static int lay(struct lr_decoder *decoder, uint8_t *to, struct lr_problem *ret_problem)
{
	const struct lr_image_info *image = &decoder->image->info;
	const struct lr_cluster_info *info = &decoder->info;
	uint64_t bytes = (uint64_t)info->pages * image->page_size;
	uint8_t *own = decoder->data;
	int code;

	if (info->data_pages < info->pages) {
		code = lr_decoder_decode(decoder, ret_problem);
		if (code == LR_OK)
			lr_layout_expand(info, decoder->data, image->page_size, to,
					 image->cluster_size);
		return code;
	}
	/* Decoded where it is wanted. */
	decoder->data = to;
	decoder->decoded_cluster = LR_NOWHERE;
	code = lr_decoder_decode(decoder, ret_problem);
	decoder->data = own;
	decoder->decoded_cluster = LR_NOWHERE;
	memset(to + bytes, 0, image->cluster_size - bytes);
	return code;
}

int lr_huge_gather(struct lr_decoder *decoder, const struct lr_target *target,
		   const struct lr_range *range, uint64_t offset, uint8_t *to, bool *ret_is_data,
		   struct lr_problem *ret_problem)
{
	struct lr_huge_clusters clusters = lr_huge_clusters(target, range, offset);
	uint64_t cluster_size = target->image->info.cluster_size, laid = 0, i = 0;

	*ret_is_data = false;
	while (i < clusters.count) {
		int code =
			lr_decoder_find(decoder, &range->region, clusters.first + i, ret_problem);

		if (code == LR_OK && decoder->info.data_pages == 0) {
			i += decoder->info.run;
			continue;
		}
		/* What was passed over. */
		memset(to + laid, 0, i * cluster_size - laid);
		if (code == LR_OK)
			code = lay(decoder, to + i * cluster_size, ret_problem);
		if (code < 0) {
			ret_problem->cluster = clusters.first + i;
			return code;
		}
		*ret_is_data = true;
		laid = ++i * cluster_size;
	}
	if (*ret_is_data)
		memset(to + laid, 0, target->host_page - laid);
	return LR_OK;
}

int lr_huge_install(struct lr_loader *loader, struct lr_range *range, uint64_t offset,
		    const uint8_t *data, uint64_t *installed_bytes, struct lr_problem *ret_problem)
{
	struct lr_huge_clusters clusters = lr_huge_clusters(loader->target, range, offset);
	int os_error = 0;
	int code = lr_loader_put(loader, range, offset, offset + loader->target->host_page, data,
				 installed_bytes, &os_error);

	if (code < 0)
		lr_problem_set(ret_problem, code, os_error, clusters.first, LR_NOWHERE);
	return code;
}

/* Not decoded again where the page could not be put in place at once. */
static int gather(struct lr_loader *loader, struct lr_hands *hands, const struct lr_range *range,
		  uint64_t offset, bool *ret_is_data, struct lr_problem *ret_problem)
{
	uint64_t number = lr_target_page(loader->target, range, offset) + 1;
	int code;

	*ret_is_data = true;
	if (hands->gathered == number)
		return LR_OK;
	hands->gathered = 0;
	code = lr_huge_gather(&hands->decoder, loader->target, range, offset, hands->expanded,
			      ret_is_data, ret_problem);
	if (code == LR_OK && *ret_is_data)
		hands->gathered = number;
	lr_loader_count(loader, &hands->decoder);
	return code;
}

static int bring(struct lr_loader *loader, struct lr_hands *hands, struct lr_range *range,
		 uint64_t offset, struct lr_outcome *outcome)
{
	struct lr_target *target = loader->target;
	struct lr_huge_clusters clusters = lr_huge_clusters(target, range, offset);
	struct lr_problem problem = {0};
	bool is_data;
	int code;

	for (uint64_t i = 0; i < clusters.count && target->record; i++)
		lr_record_note(target->record, clusters.first + i);
	/* The last of them: a fill goes on behind it. */
	atomic_store_explicit(&loader->touched, clusters.first + clusters.count,
			      memory_order_relaxed);
	code = gather(loader, hands, range, offset, &is_data, &problem);
	outcome->action = is_data ? LR_ACTION_COPY : LR_ACTION_ZEROPAGE;
	if (code == LR_OK)
		code = lr_huge_install(loader, range, offset, is_data ? hands->expanded : NULL,
				       &outcome->bytes, &problem);
	if (code < 0 && lr_loader_must_fence(code)) {
		outcome->action = LR_ACTION_FENCE;
		return lr_loader_fence(loader, range, problem.cluster, NULL, &problem);
	}
	return code;
}

/* Hugetlb's pool has no page, and may not have one for good: whoever touched it gets SIGBUS, as he
 * would without a userfaultfd. Unless it is there after all, which poisoning tells for certain. */
static int end_shortage(struct lr_loader *loader, struct lr_range *range, uint64_t offset,
			struct lr_outcome *outcome)
{
	struct lr_target *target = loader->target;
	struct lr_problem problem;
	struct lr_piece piece;
	uint64_t page;
	int64_t done;

	if (!lr_target_find_offset(target, range, offset, &piece) || piece.offset > offset)
		return LR_OK;
	page = piece.start + (offset - piece.offset);
	done = lr_uffd_poison(&target->uffd, page, target->host_page);
	if (done == -EAGAIN)
		return LR_LATER;
	if (done == -EEXIST) {
		lr_pageset_settle(&target->clusters, lr_target_page(target, range, offset), 1);
		lr_uffd_wake(&target->uffd, page, target->host_page);
		outcome->action = LR_ACTION_WAKE;
		return LR_OK;
	}
	outcome->action = LR_ACTION_FENCE;
	lr_problem_set(&problem, LR_ERR_NOMEM, ENOMEM, lr_target_cluster(target, range, offset),
		       LR_NOWHERE);
	return lr_loader_fence(loader, range, problem.cluster, NULL, &problem);
}

int lr_huge_fault(struct lr_loader *loader, struct lr_hands *hands, struct lr_range *range,
		  uint64_t offset, struct lr_outcome *ret_outcome)
{
	struct lr_target *target = loader->target;
	int code;

	memset(ret_outcome, 0, sizeof(*ret_outcome));
	if (lr_pageset_is_settled(&target->clusters, lr_target_page(target, range, offset)))
		code = lr_loader_give_zeros(loader, range, offset, offset + target->host_page,
					    ret_outcome);
	else
		code = bring(loader, hands, range, offset, ret_outcome);
	if (code == LR_ERR_NOMEM && target->zeros)
		code = end_shortage(loader, range, offset, ret_outcome);
	ret_outcome->touched_ns = lr_clock_ns();
	/* The address space is gone, or will be: nobody waits. */
	return code == LR_ERR_GONE ? LR_OK : code;
}
