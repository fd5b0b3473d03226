/* What an attachment says of itself. */
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "attach.h"
#include "stats.h"

void lr_attachment_get_info(const lr_attachment *attachment, struct lr_attachment_info *ret_info)
{
	struct lr_attachment_info info = attachment->info;

	info.state = lr_attachment_get_state(attachment);
	info.resumes = atomic_load_explicit(&attachment->resumes, memory_order_relaxed);
	*ret_info = info;
}

uint32_t lr_attachment_get_region_count(const lr_attachment *attachment)
{
	return attachment->info.region_count;
}

int lr_attachment_get_region(const lr_attachment *attachment, uint32_t region,
			     struct lr_region_info *ret_info)
{
	if (region >= attachment->info.region_count)
		return LR_ERR_NOT_FOUND;
	*ret_info = attachment->regions[region];
	return LR_OK;
}

int lr_attachment_find(const lr_attachment *attachment, const char *name, uint32_t *ret_region)
{
	size_t bytes = strlen(name);

	for (uint32_t i = 0; i < attachment->info.region_count; i++) {
		const struct lr_region_info *region = &attachment->regions[i];

		if (region->name_bytes == bytes && memcmp(region->name, name, bytes) == 0) {
			*ret_region = i;
			return LR_OK;
		}
	}
	return LR_ERR_NOT_FOUND;
}

void *lr_attachment_get_address(const lr_attachment *attachment, uint32_t region)
{
	return region < attachment->info.region_count
		       ? (void *)(uintptr_t)attachment->places[region].start
		       : NULL;
}

uint32_t lr_attachment_get_state(const lr_attachment *attachment)
{
	/* Acquire: partner of the release in lr_attach_set_state. */
	uint32_t state = atomic_load_explicit(&attachment->state, memory_order_acquire);

	return lr_attach_is_mine(attachment) ? state : LR_ATTACHMENT_CLOSED;
}

int lr_attachment_wait(const lr_attachment *attachment, int64_t timeout_ns)
{
	uint64_t begin_ns = lr_clock_ns();

	for (;;) {
		uint32_t state = lr_attachment_get_state(attachment);
		uint64_t past_ns = lr_clock_ns() - begin_ns;
		struct timespec left = {0};

		if (state == LR_ATTACHMENT_COMPLETE || state == LR_ATTACHMENT_FENCED)
			return state == LR_ATTACHMENT_COMPLETE ? LR_OK : LR_ERR_GONE;
		if (state == LR_ATTACHMENT_CONNECTED || state == LR_ATTACHMENT_CLOSED)
			return LR_ERR_CLOSED;
		if (timeout_ns >= 0 && past_ns >= (uint64_t)timeout_ns)
			return LR_ERR_TIMEOUT;
		if (timeout_ns >= 0) {
			left.tv_sec = (time_t)(((uint64_t)timeout_ns - past_ns) / 1000000000u);
			left.tv_nsec = (long)(((uint64_t)timeout_ns - past_ns) % 1000000000u);
		}
		syscall(SYS_futex, &attachment->state, FUTEX_WAIT_PRIVATE, state,
			timeout_ns >= 0 ? &left : NULL, NULL, 0);
	}
}

const void *lr_attachment_get_metadata(const lr_attachment *attachment, uint64_t *ret_bytes)
{
	*ret_bytes = attachment->metadata_bytes;
	return attachment->metadata;
}
