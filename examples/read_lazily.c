/*
 * Open an image and use its first region as ordinary memory, without Python: pages arrive when they
 * are touched. Says what each region begins with, and what that cost.
 *
 *     read_lazily IMAGE
 */
#include "lazyrestore.h"

#include <inttypes.h>
#include <stdio.h>

static int fail(const char *what, const struct lr_problem *problem)
{
	fprintf(stderr, "read_lazily: %s: %s\n", what, lr_strerror(problem->code));
	return 1;
}

/* Touch the first, the middle and the last byte of a region: three pages at most are loaded. */
static void show(const struct lr_region_info *region, const unsigned char *data)
{
	printf("%.*s: %" PRIu64 " bytes at %p, in the dump at %#" PRIx64 "\n",
	       (int)region->name_bytes, region->name, region->length, (const void *)data,
	       region->address);
	if (region->length > 0)
		printf("  first byte 0x%02x, middle 0x%02x, last 0x%02x\n", data[0],
		       data[region->length / 2], data[region->length - 1]);
}

static int show_all(lr_image *image, lr_session *session, struct lr_problem *problem)
{
	struct lr_image_info info;
	lr_image_get_info(image, &info);
	for (uint32_t i = 0; i < info.region_count; i++) {
		struct lr_region_info region;
		void *data = NULL;
		lr_image_get_region(image, i, &region);
		if (region.length > 0 && lr_session_map(session, i, &data, problem) != LR_OK)
			return fail("cannot map a region", problem);
		show(&region, data);
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO};
	struct lr_problem problem = {0};
	struct lr_session_stats stats;
	lr_session *session = NULL;
	lr_image *image = NULL;
	int status = 1;

	if (argc != 2) {
		fprintf(stderr, "usage: read_lazily IMAGE\n");
		return 2;
	}
	if (lr_image_open(argv[1], &image, &problem) != LR_OK)
		fail(argv[1], &problem);
	else if (lr_session_open(image, &options, &session, &problem) != LR_OK)
		fail("cannot restore lazily here", &problem);
	else
		status = show_all(image, session, &problem);
	if (status == 0) {
		lr_session_get_stats(session, &stats);
		printf("%" PRIu64 " faults: %" PRIu64 " pages copied, %" PRIu64 " zeroed, %" PRIu64
		       " bytes of the image's payload read, %" PRIu64 " errors\n",
		       stats.faults, stats.pages_copied, stats.pages_zeroed,
		       stats.payload_bytes_read, stats.errors);
	}
	lr_session_close(session);
	lr_image_close(image);
	return status;
}
