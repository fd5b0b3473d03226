#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "hostile.h"

#include <string.h>
#include <unistd.h>

#include "lazyrestore.h"

#define REGIONS_MAX 4u
#define TOUCHES_MAX 24u

/* One image: as memory, and as a reader gives it. */
struct restored {
	lr_image *image;
	lr_reader *reader;
	lr_session *session;
	uint64_t host_page;
};

bool hostile_can_restore(void)
{
	struct lr_uffd_probe probe;

	lr_uffd_probe(&probe);
	return probe.device_error == 0 || probe.syscall_error == 0;
}

/* Touch one page. It is what reading gives, or both are errors. */
static void touch(struct restored *all, uint32_t number, const struct lr_region_info *region,
		  const uint8_t *address, uint64_t page)
{
	uint8_t expected[65536] = {0};
	uint64_t offset = page * all->host_page;
	uint64_t rest = region->length - offset;
	uint32_t latency_ns = 0;
	int code;

	HOSTILE_CHECK(all->host_page <= sizeof(expected));
	code = lr_reader_read(all->reader, number, offset, expected,
			      rest < all->host_page ? rest : all->host_page, 0, NULL);
	HOSTILE_CHECK(lr_touch(address + offset, all->host_page, (uint32_t)all->host_page,
			       LR_TOUCH_SEQUENTIAL, 0, 0, 1, &latency_ns)
		      == 1);
	hostile_counts.pages_touched++;
	hostile_counts.pages_fenced += latency_ns == LR_TOUCH_FAILED;
	if ((code < 0) != (latency_ns == LR_TOUCH_FAILED))
		HOSTILE_FAIL("region %u, offset %llu: reading gives %s, the page %s", number,
			     (unsigned long long)offset, lr_error_name(code),
			     latency_ns == LR_TOUCH_FAILED ? "a signal" : "bytes");
	if (code == LR_OK)
		HOSTILE_CHECK(memcmp(address + offset, expected, all->host_page) == 0);
}

static void touch_region(struct restored *all, uint32_t number, const struct lr_region_info *region)
{
	uint64_t pages = (region->length - 1) / all->host_page + 1, done = 0, state = number + 1;
	struct lr_problem problem = {0};
	void *address;
	int code = lr_session_map(all->session, number, &address, &problem);

	if (code < 0) {
		/* There is no memory for regions of 2^60 bytes. */
		HOSTILE_CHECK(code == LR_ERR_NOMEM && region->length > 1ull << 32);
		return;
	}
	for (uint64_t i = 0; i < TOUCHES_MAX && i < 2 * pages; i++) {
		uint64_t page = i < 8 ? i : i == 8 ? pages - 1 : state % pages;

		touch(all, number, region, address, page < pages ? page : pages - 1);
		state = state * 6364136223846793005ull + 1442695040888963407ull;
	}
	if (region->length > 1u << 20)
		return;
	/* All of a small one: what populate says is what reading says. */
	code = lr_session_populate(all->session, number, 0, region->length, 20000000000, &done,
				   &problem);
	HOSTILE_CHECK(code == LR_OK || (code <= LR_ERR_EMPTY && code >= LR_ERR_FRAME));
	for (uint64_t page = 0; page < pages && code == LR_OK; page++)
		touch(all, number, region, address, page);
}

static void check_errors(struct restored *all, uint32_t region_count)
{
	struct lr_load_error errors[16];
	uint32_t count = lr_session_get_errors(all->session, 0, errors, 16);

	for (uint32_t i = 0; i < count; i++) {
		HOSTILE_CHECK(errors[i].region < region_count && errors[i].length > 0);
		HOSTILE_CHECK(errors[i].code <= LR_ERR_NODE && errors[i].code >= LR_ERR_FRAME);
		HOSTILE_CHECK(errors[i].fenced);
	}
}

void hostile_restore(const uint8_t *data, size_t bytes)
{
	static int can_restore = -1;
	struct restored all = {.host_page = (uint64_t)sysconf(_SC_PAGESIZE)};
	struct lr_problem problem = {0};
	struct lr_image_info info;
	struct lr_region_info region;
	unsigned mapped = 0;
	int code;

	if (can_restore < 0)
		can_restore = hostile_can_restore();
	if (!can_restore || lr_image_open(hostile_publish(data, bytes), &all.image, NULL) < 0)
		return;
	lr_image_get_info(all.image, &info);
	HOSTILE_CHECK(lr_reader_open(all.image, &all.reader) == LR_OK);
	code = lr_session_open(all.image, NULL, &all.session, &problem);
	if (code == LR_OK) {
		hostile_counts.sessions++;
		for (uint32_t i = 0; i < info.region_count && mapped < REGIONS_MAX; i++) {
			HOSTILE_CHECK(lr_image_get_region(all.image, i, &region) == LR_OK);
			if (region.length == 0)
				continue;
			touch_region(&all, i, &region);
			mapped++;
		}
		check_errors(&all, info.region_count);
	} else if (code == LR_ERR_PAGE_SIZE) {
		HOSTILE_CHECK(info.cluster_size < all.host_page);
	} else {
		/* A note for each cluster, for 2^60 bytes of them. */
		HOSTILE_CHECK(code == LR_ERR_NOMEM && info.logical_bytes > 1ull << 32);
	}
	lr_session_close(all.session);
	lr_reader_close(all.reader);
	lr_image_close(all.image);
}
