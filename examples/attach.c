/*
 * Use memory that another process restores: a `lazyrestore serve` has the image, and this program
 * has the memory. Says what each region begins with.
 *
 *     lazyrestore serve IMAGE --socket /run/user/1000/state.sock &
 *     attach /run/user/1000/state.sock
 *
 * or, with a service of its own that ends with it:
 *
 *     lazyrestore restore --lazy IMAGE -- attach
 */
#include <lazyrestore.h>

#include <inttypes.h>
#include <stdio.h>

static int fail(const struct lr_problem *problem)
{
	/* A refusal has words of its own. */
	const char *why = lr_attach_get_refusal(NULL);

	fprintf(stderr, "attach: %s%s%s\n", lr_strerror(problem->code), why[0] ? ": " : "", why);
	return 1;
}

/* Touch the first, the middle and the last byte of a region: three pages at most are loaded. */
static void show(const struct lr_region_info *region, const unsigned char *data)
{
	printf("%s: %" PRIu64 " bytes at %p\n", region->name, region->length, (const void *)data);
	if (data)
		printf("  first byte 0x%02x, middle 0x%02x, last 0x%02x\n", data[0],
		       data[region->length / 2], data[region->length - 1]);
}

int main(int argc, char **argv)
{
	struct lr_problem problem = {0};
	lr_attachment *attachment;

	if (argc > 2) {
		fprintf(stderr, "usage: attach [SOCKET]\n");
		return 2;
	}
	/* Without a path it is LAZYRESTORE_SOCKET of the environment. */
	if (lr_attach(argv[1], NULL, &attachment, &problem) != LR_OK)
		return fail(&problem);
	for (uint32_t i = 0; i < lr_attachment_get_region_count(attachment); i++) {
		struct lr_region_info region;

		lr_attachment_get_region(attachment, i, &region);
		show(&region, lr_attachment_get_address(attachment, i));
	}
	lr_detach(attachment);
	return 0;
}
