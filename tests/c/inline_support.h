/*
 * inline_support: sessions whose threads answer their own faults, for the tests of that. Include
 * after check.h.
 */
#ifndef LR_TESTS_INLINE_SUPPORT_H
#define LR_TESTS_INLINE_SUPPORT_H

#include "check.h"

#include "image_builder.h"

#define PAGE 4096u

struct lazy {
	struct image image;
	lr_image *opened;
	lr_session *session;
	uint8_t *memory; /* of region 0 */
	const uint8_t *expected;
	uint64_t length;
};

static inline void lazy_start(struct lazy *lazy, const struct lr_session_options *options)
{
	struct lr_problem problem;
	void *memory;
	int code;

	CHECK_EQ(lr_image_open(lazy->image.path, &lazy->opened, NULL), LR_OK);
	code = lr_session_open(lazy->opened, options, &lazy->session, &problem);
	if (code == LR_ERR_PERMISSION || code == LR_ERR_UNSUPPORTED)
		SKIP("no userfaultfd here: %s", strerror(problem.os_error));
	CHECK_EQ(code, LR_OK);
	CHECK_EQ(lr_session_map(lazy->session, 0, &memory, NULL), LR_OK);
	lazy->memory = memory;
	lazy->expected = lazy->image.regions[0].bytes;
	lazy->length = lazy->image.regions[0].length;
}

static inline void lazy_open_as(struct lazy *lazy, uint32_t cluster_size, uint64_t length,
				const char *pattern, uint32_t fault_mode)
{
	struct lr_session_options options = {
		.privilege = LR_PRIVILEGE_AUTO,
		.fault_mode = fault_mode,
	};

	memset(lazy, 0, sizeof(*lazy));
	image_make(&lazy->image, PAGE, cluster_size, length, pattern);
	lazy_start(lazy, &options);
}

static inline void lazy_open(struct lazy *lazy, uint32_t cluster_size, uint64_t length,
			     const char *pattern)
{
	lazy_open_as(lazy, cluster_size, length, pattern, LR_FAULT_INLINE);
}

static inline void lazy_close(struct lazy *lazy)
{
	lr_session_close(lazy->session);
	lr_image_close(lazy->opened);
	image_fini(&lazy->image);
}

static inline struct lr_session_stats lazy_stats(const struct lazy *lazy)
{
	struct lr_session_stats stats;

	lr_session_get_stats(lazy->session, &stats);
	return stats;
}

/* Write over a stored cluster in the image's file: it cannot be loaded any more. */
static inline void lazy_damage(const struct lazy *lazy, uint64_t cluster)
{
	uint64_t entry = image_entry_offset(&lazy->image, cluster);
	uint64_t offset = image_get(lazy->image.file + entry, 8);
	uint8_t byte = lazy->image.file[offset] ^ 0xff;

	CHECK_EQ(pwrite(lazy->image.fd, &byte, 1, (off_t)offset), 1);
}

#endif
