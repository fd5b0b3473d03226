/* One image and one peer, for tests of serving. Include after check.h. */
#ifndef LR_TESTS_SERVE_SETTING_H
#define LR_TESTS_SERVE_SETTING_H

#include <sys/eventfd.h>

#include "image_builder.h"
#include "peer.h"
#include "session.h"

#define PAGE KERNEL_PAGE

/* Before any peer is started, so that each has what is to be found. */
static struct image image;
static lr_image *opened;

static inline void make_image(uint32_t cluster_size, size_t pages, const char *pattern)
{
	image_make(&image, PAGE, cluster_size, pages * PAGE, pattern);
	CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
}

static inline struct lr_peer_range whole_range(const struct peer *peer)
{
	return (struct lr_peer_range){
		.address = (uintptr_t)peer->memory,
		.bytes = peer->pages * PAGE,
	};
}

static inline int try_to_serve(const struct peer *peer, const struct lr_peer_range *ranges,
			       uint64_t count, int state, lr_session **ret_session)
{
	struct lr_serve_options options = {
		.uffd = peer->uffd,
		.state = state,
		.pid = peer->pid,
		.event_fd = -1,
		.ranges = ranges,
		.range_count = count,
	};

	return lr_session_serve(opened, &options, ret_session, NULL);
}

static inline lr_session *serve(const struct peer *peer, int state)
{
	struct lr_peer_range range = whole_range(peer);
	lr_session *session = NULL;
	int code;

	/* Whoever served before may be about to end. */
	do
		code = try_to_serve(peer, &range, 1, state, &session);
	while (code == LR_ERR_BUSY);
	CHECK_EQ(code, LR_OK);
	return session;
}

static inline int new_state(void)
{
	int32_t fd = -1;

	CHECK_EQ(lr_serve_state(opened, 0, &fd, NULL), LR_OK);
	return fd;
}

static inline struct lr_session_stats stats_of(lr_session *session)
{
	struct lr_session_stats stats;

	lr_session_get_stats(session, &stats);
	return stats;
}

/* ---- What peers do ---- */

/* 0 where pages [first, end) are as in the image, else the number of the first that is not, and 1.
 */
static inline int64_t check_pages(struct peer *peer, uint64_t first, uint64_t end)
{
	for (uint64_t page = first; page < end; page++)
		if (memcmp(peer->memory + page * PAGE, image.regions[0].bytes + page * PAGE, PAGE)
		    != 0)
			return (int64_t)page + 1;
	return 0;
}

static inline int64_t check_zeros(struct peer *peer, uint64_t first, uint64_t end)
{
	for (uint64_t page = first; page < end; page++)
		if (!kernel_is_zero(peer->memory + page * PAGE, PAGE))
			return (int64_t)page + 1;
	return 0;
}

/* 0, or the signal that touching a page raises. */
static inline int64_t touch_page(struct peer *peer, uint64_t page, uint64_t is_write)
{
	return check_touch(peer->memory + page * PAGE, (int)is_write);
}

static inline int64_t give_up(struct peer *peer, uint64_t first, uint64_t end)
{
	return madvise(peer->memory + first * PAGE, (end - first) * PAGE, MADV_DONTNEED) < 0 ? errno
											     : 0;
}

static inline int64_t unmap(struct peer *peer, uint64_t first, uint64_t end)
{
	return munmap(peer->memory + first * PAGE, (end - first) * PAGE) < 0 ? errno : 0;
}

#endif
